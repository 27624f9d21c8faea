//! taq's built-in plugins. Each is one file or folder with its registration and its tests.
//!
//! A program links them by naming the crate: `use taq_plugins as _;`.

pub mod models;
pub mod observers;
pub mod policies;
pub mod rounders;
pub mod samplers;
