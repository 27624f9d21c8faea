//! Runs the command line in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The command with `arguments`, silent, its output captured.
pub fn command(host: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(host);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end and fails the test if the command did.
pub fn succeed(host: &str, arguments: &[&str]) -> String {
    let output = command(host, arguments).output().expect("the host starts");
    assert!(output.status.success(), "taq {arguments:?} failed:\n{}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs to the end and returns exit code and standard error.
pub fn fail(host: &str, arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = command(host, arguments).output().expect("the host starts");
    (status.code().unwrap_or(-1), text(&stderr))
}

/// Output as text with runs of white space and the frame's characters folded, so that wrapping does not matter.
pub fn folded(text: &str) -> String {
    text.replace(['│', '╰', '─', '▶', '×', '├'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every file below a folder, relative, sorted; locks and what measures time apart.
pub fn artifacts(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name != ".lock" && !name.ends_with(".cost.json") && name != "report.json" {
                files.push(path.strip_prefix(folder).expect("below the folder").to_owned());
            }
        }
    }
    files.sort();
    files
}

/// The document less what measures time and memory.
fn without_costs(bytes: &[u8]) -> Vec<u8> {
    let mut document: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
    document["costs"].take();
    serde_json::to_vec(&document).expect("JSON")
}

/// Fails the test unless both folders hold the same artifacts with the same bytes.
pub fn assert_same_artifacts(a: &Path, b: &Path) {
    let (in_a, in_b) = (artifacts(a), artifacts(b));
    assert_eq!(in_a, in_b);
    assert!(!in_a.is_empty());
    for file in in_a {
        let bytes = |folder: &Path| {
            let bytes = std::fs::read(folder.join(&file)).expect("a readable file");
            if file.ends_with("quantized_weights/config.json") { without_costs(&bytes) } else { bytes }
        };
        assert!(bytes(a) == bytes(b), "{} differs", file.display());
    }
}
