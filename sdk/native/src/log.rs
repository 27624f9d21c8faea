//! Events of `tracing` go to the host's log.
//!
//! A library has its own copy of `tracing`, whose events would vanish: nobody in the host hears of them.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::abi::{self, HostApi, Str};

/// Hands events to the host, which filters them. Spans are not told.
pub(crate) struct HostLog(pub(crate) &'static HostApi);

impl HostLog {
    #[allow(unsafe_code, reason = "a function of the host")]
    fn write(&self, level: u32, target: &str, message: &str) {
        // SAFETY: the table of the entry lives as long as the process; the text is borrowed for the call.
        unsafe { (self.0.log)(self.0.ctx, level, Str::new(target), Str::new(message)) }
    }
}

impl Subscriber for HostLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => abi::LOG_ERROR,
            Level::WARN => abi::LOG_WARN,
            Level::INFO => abi::LOG_INFO,
            Level::DEBUG => abi::LOG_DEBUG,
            Level::TRACE => abi::LOG_TRACE,
        };
        let mut line = Line::default();
        event.record(&mut line);
        self.write(level, event.metadata().target(), &(line.message + &line.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// `message field=value field=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::sync::Mutex;

    use super::*;

    static LINES: Mutex<Vec<(u32, String, String)>> = Mutex::new(Vec::new());

    #[allow(unsafe_code, reason = "stands for the host")]
    unsafe extern "C" fn log(_: *mut c_void, level: u32, target: Str, message: Str) {
        // SAFETY: the text is borrowed for the call.
        let text = |s| unsafe { crate::view::text(s, "text").unwrap().to_owned() };
        LINES.lock().unwrap().push((level, text(target), text(message)));
    }
    extern "C" fn progress(_: *mut c_void, _: u64, _: u64) {}
    extern "C" fn cancelled(_: *mut c_void) -> u32 {
        0
    }

    #[test]
    fn events_arrive_with_level_target_and_fields() {
        static HOST: HostApi =
            HostApi { size: 40, abi_minor: 0, ctx: std::ptr::null_mut(), log, progress, cancelled };
        tracing::subscriber::with_default(HostLog(&HOST), || {
            let span = tracing::info_span!("a span");
            let _entered = span.enter();
            tracing::warn!(target: "mine", loss = 0.5, "block {}", 3);
            tracing::debug!("quiet");
        });
        let lines = LINES.lock().unwrap();
        assert_eq!(lines[0], (abi::LOG_WARN, "mine".to_owned(), "block 3 loss=0.5".to_owned()));
        assert_eq!((lines[1].0, lines[1].2.as_str()), (abi::LOG_DEBUG, "quiet"));
    }
}
