//! `taq plugins check`: a library under the conformance suites, each check within a time limit.
//!
//! A call of a library cannot be ended from outside, so the suites run on a thread of their own, which tells what it
//! begins. When one check takes too long, that thread is left behind and the program ends with an error.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};
use taq_core::Error;
use taq_core::native::{Library, NativeItem, Report};
use taq_core::wasm::shown;

use crate::error::Failure;
use crate::output::{Table, print, terminal_width};

/// What the thread tells.
enum Told {
    Loaded(Result<&'static Library, Error>),
    Begins(String),
    Checked(&'static NativeItem, Report),
}

/// Loads a library and holds its plugins to what is expected of them.
pub(super) fn check(
    path: &Path,
    config: Option<&Map<String, Value>>,
    limit: Duration,
) -> Result<(), Failure> {
    let (tell, told) = channel();
    let thread = {
        let (path, config) = (path.to_owned(), config.cloned().unwrap_or_default());
        thread::spawn(move || work(&path, &config, &tell))
    };
    let mut doing = "it is being loaded".to_owned();
    let (mut failed, mut of) = (0, 0);
    loop {
        match told.recv_timeout(limit) {
            Ok(Told::Loaded(library)) => head(library?, config)?,
            Ok(Told::Begins(what)) => doing = what,
            Ok(Told::Checked(item, report)) => {
                of += report.checks.len();
                failed += show(item, &report)?;
            }
            Err(RecvTimeoutError::Timeout) => return Err(stuck(path, &doing, limit).into()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if thread.join().is_err() {
        let path = path.to_owned();
        return Err(Error::Native { path, reason: format!("{doing}: the check itself panicked") }.into());
    }
    print(&format!("\n{} of {of} checks passed\n", of - failed))?;
    if failed == 0 { Ok(()) } else { Err(Failure::Checks { failed, of, what: "checks" }) }
}

fn work(path: &Path, config: &Map<String, Value>, tell: &Sender<Told>) {
    // Whoever listened has gone if a message does not arrive: then there is nobody to work for.
    let loaded = Library::load(path);
    let items = loaded.as_ref().map_or(&[][..], |library| library.items());
    if tell.send(Told::Loaded(loaded)).is_err() {
        return;
    }
    for item in items {
        let settings = config.get(item.name()).map_or_else(|| "{}".into(), Value::to_string);
        let report = item.check(&settings, &mut |name| {
            let what = format!("{} `{}`, “{name}”", item.kind(), item.name());
            let _ = tell.send(Told::Begins(what));
        });
        if tell.send(Told::Checked(item, report)).is_err() {
            return;
        }
    }
}

/// Says what the library is, and that all settings are for one of its plugins.
fn head(library: &Library, config: Option<&Map<String, Value>>) -> Result<(), Failure> {
    let facts = library.facts();
    let on_target = if facts.target.is_empty() { String::new() } else { format!(", {}", facts.target) };
    print(&format!(
        "`{}`\n{} {}, plugin ABI {}, built with {}, {}{on_target}\nblake3 {}\n",
        library.path().display(),
        library.name(),
        library.version(),
        facts.abi,
        facts.sdk,
        facts.compiler,
        library.hash()
    ))?;
    let named = |name: &str| library.items().iter().any(|item| item.name() == name);
    if let Some(name) = config.and_then(|c| c.keys().find(|name| !named(name))) {
        let known: Vec<&str> = library.items().iter().map(NativeItem::name).collect();
        let reason = format!("the library has no plugin `{name}`; it has {}", known.join(", "));
        return Err(Error::settings("--config", reason).into());
    }
    Ok(())
}

/// Prints what the suite of one plugin found; the number of checks that failed.
fn show(item: &NativeItem, report: &Report) -> Result<usize, Failure> {
    let mut failed = 0;
    let mut table = Table::new(&["", "CHECK"]);
    for (name, result) in &report.checks {
        match result {
            Ok(()) => table.row(["ok", name]),
            Err(reason) => {
                failed += 1;
                table.row(["FAILED", &format!("{name}: {}", shown(reason.as_bytes()))]);
            }
        }
    }
    let head = format!("\n{} `{}`: {}\n", item.kind(), item.name(), item.info().summary);
    print(&(head + &table.render(terminal_width())))?;
    Ok(failed)
}

fn stuck(path: &Path, doing: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs();
    Error::Native {
        path: path.to_owned(),
        reason: format!(
            "{doing}: not done after {seconds} s. Does a call never return? `--timeout` gives it longer, and `--config` \
             less to do"
        ),
    }
}
