//! Built-in bit policies.
