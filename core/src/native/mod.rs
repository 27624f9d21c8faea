//! The native host: observers, rounders and bit policies from shared libraries, ABI version 1 (`docs/abi.md`).
//!
//! A library is code of this process: it may do what taq may do, and what it breaks is broken. Only WASM is a sandbox. What
//! can be checked is checked, from the outside in: the path, the file's format, architecture and stamp before any code of it
//! runs; then what it declares; then whatever comes back from its functions. A library is never unloaded.
//!
//! The order of checks follows zenoh's plugin loader (eclipse-zenoh/zenoh@98fc881), whose message shows both sides of a
//! mismatch, and DuckDB's extensions, whose stamp is read from the file.
#![allow(unsafe_code, reason = "foreign functions")]

mod answer;
mod block;
mod call;
mod check;
mod declared;
mod instance;
mod layers;
mod library;
mod memory;
mod observer;
mod policy;
mod rounder;
mod stamp;

pub use check::Report;
pub use declared::NativeItem;
pub use layers::LAYER_ROWS;
pub use library::Library;
pub(crate) use library::inspect;
pub use stamp::StampFacts;
