//! Built-in samplers.

mod euler;

pub use euler::{Euler, EulerSettings};
