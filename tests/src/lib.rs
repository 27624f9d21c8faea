//! Helpers of the tests: where fixtures lie, reference tensors by name, how far two tensors are apart, the command
//! line as a process, pages in a browser.

pub mod activations;
pub mod both;
pub mod chromium;
pub mod golden;
pub mod linear;
pub mod linked;
pub mod markdown;
pub mod native;
pub mod paths;
pub mod planted;
pub mod python;
pub mod taq;
pub mod wasm;

/// The code in the book, compiled and run as documentation tests; that of `write-a-policy.md` is built as a project by
/// `tests/book.rs`.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../docs/write-a-rounder.md")]
    struct WriteARounder;
    #[doc = include_str!("../../docs/write-other-plugins.md")]
    struct WriteOtherPlugins;
}
