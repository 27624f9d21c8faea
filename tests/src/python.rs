//! Python with packages of the formats that taq writes, where a machine has them.

use std::process::Command;

/// Runs a program in Python and returns what it prints; `None`, with a line on stderr that says so, if Python cannot import
/// one of `modules`. `TAQ_TEST_PYTHON` names the interpreter (default: `python3`).
pub fn python(modules: &[&str], program: &str, arguments: &[&str]) -> Option<String> {
    let python = std::env::var("TAQ_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = format!("import {}", modules.join(", "));
    let can = Command::new(&python).args(["-c", &import]).output().is_ok_and(|o| o.status.success());
    if !can {
        eprintln!("skipped: `{python}` cannot `{import}`; pip install them and set TAQ_TEST_PYTHON");
        return None;
    }
    let output = Command::new(&python).args(["-c", program]).args(arguments).output().expect("python starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(text(&output.stdout))
}
