//! Built-in observers.
