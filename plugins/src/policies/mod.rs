//! Built-in bit policies.

mod a8;

pub use a8::{A8, A8Settings};
