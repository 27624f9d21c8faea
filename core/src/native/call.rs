//! What a library may call while it is being called, and what its status means.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use taq_plugin::abi::{self, Buf, HostApi, Str};
use taq_plugin::view;

use super::memory::is_mapped;
use crate::wasm::{limits, shown};
use crate::{Context, Error};

/// Lines that one plugin may write to the log.
const LOG_LINES: u32 = 10_000;

/// Units of progress of one call that rounds.
pub(super) const UNITS: u64 = 1000;

/// Who speaks in the log.
pub(super) struct Speaker {
    name: String,
    lines: Mutex<u32>,
}

impl Speaker {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), lines: Mutex::new(0) }
    }

    fn log(&self, level: u32, target: Str, message: Str) {
        let Ok(mut lines) = self.lines.lock() else { return };
        *lines += 1;
        if *lines > LOG_LINES {
            if *lines == LOG_LINES + 1 {
                tracing::warn!("{}: more than {LOG_LINES} lines; the rest is left out", self.name);
            }
            return;
        }
        drop(lines);
        let (name, line) = (&self.name, words(message));
        // Where the line comes from is for those who debug the plugin.
        let from = || words(target);
        match level {
            abi::LOG_ERROR => tracing::error!("{name}: {line}"),
            abi::LOG_WARN => tracing::warn!("{name}: {line}"),
            abi::LOG_INFO => tracing::info!("{name}: {line}"),
            abi::LOG_DEBUG => tracing::debug!(target: "taq_plugin", "{name}: {line} ({})", from()),
            _ => tracing::trace!(target: "taq_plugin", "{name}: {line} ({})", from()),
        }
    }
}

/// A library's text, fit for a terminal.
pub(super) fn words(text: Str) -> String {
    // Four bytes a character at the most.
    let len = text.len.min(4 * limits::TEXT_CHARACTERS + 1);
    if len == 0 {
        return String::new();
    }
    if !is_mapped(text.ptr.cast(), len) {
        return "(text that cannot be read)".into();
    }
    // SAFETY: there is memory of that length.
    shown(unsafe { std::slice::from_raw_parts(text.ptr, len) })
}

/// A buffer that a library filled in: its first bytes, or none if it points nowhere.
pub(super) fn bytes(buf: Buf, most: usize) -> Option<Vec<u8>> {
    if !buf.ptr.is_null() && !is_mapped(buf.ptr.cast_const().cast(), buf.len.min(most)) {
        return None;
    }
    if buf.release.is_some_and(|f| !is_mapped(f as *const c_void, 1)) {
        return None;
    }
    // SAFETY: it was filled in by a call that has returned, and is not used again.
    Some(unsafe { view::taken(buf, most) })
}

/// One call: the context of the work, and which part of it this call is.
pub(super) struct Call<'a> {
    speaker: &'a Speaker,
    cx: Option<&'a Context>,
    /// Units that were reported, and those that this call is worth.
    units: Mutex<(u64, u64)>,
}

impl<'a> Call<'a> {
    /// A call that is worth so many units of progress.
    pub(super) fn new(speaker: &'a Speaker, cx: Option<&'a Context>, units: u64) -> Self {
        Self { speaker, cx, units: Mutex::new((0, units)) }
    }

    /// What the library may call: valid as long as this call.
    pub(super) fn api(&self) -> HostApi {
        HostApi {
            size: size_of::<HostApi>() as u32,
            abi_minor: abi::ABI_MINOR.into(),
            ctx: (&raw const *self).cast_mut().cast(),
            log,
            progress,
            cancelled,
        }
    }

    /// Reports what is left of the call's progress.
    pub(super) fn done(&self) {
        self.reach(1, 1);
    }

    fn reach(&self, done: u64, total: u64) {
        let (Some(cx), Ok(mut units)) = (self.cx, self.units.lock()) else { return };
        if total == 0 {
            return;
        }
        let share = done.min(total) as f64 / total as f64;
        let reached = (share * units.1 as f64) as u64;
        if reached > units.0 {
            cx.progress.advance(reached - units.0, "");
            units.0 = reached;
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cx.is_some_and(|cx| cx.cancel.is_cancelled())
    }
}

/// A panic must not reach a frame of another language.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, target: Str, message: Str) {
    // SAFETY: `ctx` is that of `Call::api`, which is alive.
    quietly(|| unsafe { &*ctx.cast::<Call<'_>>() }.speaker.log(level, target, message));
}

unsafe extern "C" fn progress(ctx: *mut c_void, done: u64, total: u64) {
    // SAFETY: as above.
    quietly(|| unsafe { &*ctx.cast::<Call<'_>>() }.reach(done, total));
}

unsafe extern "C" fn cancelled(ctx: *mut c_void) -> u32 {
    // SAFETY: as above.
    quietly(|| unsafe { &*ctx.cast::<Call<'_>>() }.is_cancelled()).map_or(0, u32::from)
}

/// What a status other than [`abi::OK`] means; `who` is “rounder `x`”, `function` what was called.
pub(super) fn failure(
    path: &Path,
    (who, function): (&str, &str),
    status: i32,
    error: Buf,
    cx: Option<&Context>,
) -> Error {
    let text = match bytes(error, view::MESSAGE_BYTES) {
        Some(bytes) if bytes.is_empty() => "it does not say why".to_owned(),
        Some(bytes) => shown(view::message(&bytes).as_bytes()),
        None => "what it says of it cannot be read".to_owned(),
    };
    let native = |reason: String| Error::Native { path: path.to_owned(), reason };
    match status {
        abi::INVALID if function == "create" => Error::settings(who, text),
        abi::CANCELLED if cx.is_some_and(|cx| cx.cancel.is_cancelled()) => Error::Cancelled,
        abi::CANCELLED => native(format!("{who}: `{function}` stopped although nobody asked it to")),
        abi::PANICKED => native(format!("{who} panicked in `{function}`: {text}")),
        abi::UNSUPPORTED => native(format!("{who} does not support this: {text}")),
        abi::INVALID | abi::FAILED => native(format!("{who}: {text}")),
        other => native(format!("{who}: `{function}` returned {other}, expected 0 to 5: {text}")),
    }
}
