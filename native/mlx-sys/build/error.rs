//! The one error type of the build script: a sentence for the person building.

use std::fmt;

pub type Result<T> = std::result::Result<T, BuildError>;

/// What went wrong and what to install or set.
#[derive(Debug)]
pub struct BuildError(pub String);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Builds a [`BuildError`] from a format string.
#[macro_export]
macro_rules! fail {
    ($($part:tt)*) => { $crate::error::BuildError(format!($($part)*)) };
}
