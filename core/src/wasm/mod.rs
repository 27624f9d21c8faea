//! The WASM host: bit policies as sandboxed modules and components, ABI version 1
//! (`docs/abi/policy-v1.md`).
//!
//! A policy gets one JSON document and answers with another. It has no clock, no files, no randomness, no threads
//! and no memory of an earlier call: every call runs in a fresh store. What it may use is bounded ([`limits`]), and
//! the bounds that stop it are counted in instructions and bytes, never in seconds, so that the same module and the
//! same request end in the same plan everywhere.
//!
//! The shape follows typst's plugins (typst/typst@a51e028) and the gate before instantiation CosmWasm's
//! (CosmWasm/cosmwasm@fe92977): a guest owns its memory, and whatever a module is not, is said before it runs.

mod assemble;
mod cache;
mod call;
mod compile;
mod component;
mod explain;
mod gate;
mod limiter;
pub mod limits;
mod module;
mod policy;
#[cfg(fuzzing)]
mod probe;
mod text;

#[cfg(test)]
mod tests;

pub use gate::ModuleFacts;
pub use policy::{PolicyRun, WasmPolicy};
#[cfg(fuzzing)]
pub use probe::{Outcome, probe};
pub(crate) use text::document;
pub use text::shown;
