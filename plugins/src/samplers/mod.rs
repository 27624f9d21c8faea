//! Built-in samplers.
