//! Named arrays in one file, as `numpy.savez` writes and `numpy.load` reads them.
//!
//! Follows NEP 1 (the npy format, version 1) inside a zip archive. Archives are written without compression and
//! without a clock in them: the same arrays give the same bytes. Compressed ones (`savez_compressed`) are read.

mod element;
mod mlx;
mod read;
#[cfg(test)]
mod tests;
mod text;
mod write;

pub use element::Element;
pub(crate) use mlx::host_values;
pub use read::{Npz, Stored};
pub use write::{NpzWriter, write_npz};

/// What these files are called in errors.
const KIND: &str = "npz file";
