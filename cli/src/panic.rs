//! A panic is a defect of taq or of a plugin: the user gets one message and an exit code, no backtrace dump.

use std::any::Any;
use std::panic::PanicHookInfo;

use crate::terminal::Terminal;

/// Replaces the default hook by one clear message on stderr; `RUST_BACKTRACE=1` adds a backtrace.
pub(crate) fn install(terminal: Terminal) {
    std::panic::set_hook(Box::new(move |info| terminal.write(&message(info))));
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
    let mut text = format!(
        "taq has a defect: {}{place}\n\
         Please report it with this message, the command line and the output of `taq doctor`.\n\
         What was finished is kept: the same command goes on from there.\n",
        reason(info.payload()),
    );
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        text.push_str(&format!("{backtrace}\n"));
    } else {
        text.push_str("RUST_BACKTRACE=1 adds a backtrace.\n");
    }
    text
}

fn reason(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}
