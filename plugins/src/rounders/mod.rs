//! Built-in rounders.
