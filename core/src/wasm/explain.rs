//! Why a call ended early.

use wasmtime::Trap;

use super::limits::{RESPONSE_BYTES, STACK_BYTES};
use super::text::shown;

/// A rule of the ABI, or a limit, that a guest broke.
#[derive(Debug)]
struct Violation(String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// An error of the host's own, with the sentence for the user.
pub(super) fn violation(text: impl Into<String>) -> wasmtime::Error {
    wasmtime::Error::new(Violation(text.into()))
}

/// What to tell the user of an error.
pub(super) fn explain(error: &wasmtime::Error, fuel: u64) -> String {
    if let Some(Violation(text)) = error.downcast_ref() {
        return text.clone();
    }
    if let Some(trap) = error.downcast_ref() {
        return match trap {
            Trap::OutOfFuel => {
                format!("it did not end within {} million instructions (an endless loop?)", fuel / 1_000_000)
            }
            Trap::StackOverflow => {
                format!("it ran out of its {} KiB of stack (an endless recursion?)", STACK_BYTES >> 10)
            }
            Trap::UnreachableCodeReached => "it gave up (`unreachable`: a panic or an abort)".into(),
            Trap::MemoryOutOfBounds => "it reached outside its memory".into(),
            trap => format!("it was stopped: {trap}"),
        };
    }
    let text = error.root_cause().to_string();
    // The type of this error is private. A test holds wasmtime to the words.
    if text.contains("fuel allocated for hostcalls") {
        return format!("its response or a line of its log is longer than {RESPONSE_BYTES} bytes");
    }
    format!("it was stopped: {}", shown(text.as_bytes()))
}
