//! Built-in models.

pub mod sd3;
