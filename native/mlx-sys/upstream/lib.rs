//! Empty: see the comment in Cargo.toml.
