//! What this build was linked with.

/// The value that selected the MLX library: `cpu`, `cuda12`, `cuda13`, `metal`, or `path` for a
/// folder of the user's.
pub const BACKEND: &str = env!("TAQ_MLX_BACKEND");

/// The version of MLX, as its headers state it.
pub const MLX_VERSION: &str = env!("TAQ_MLX_VERSION");

/// The BLAS that matrix products on the CPU run on, with its version where known.
pub const BLAS: &str = env!("TAQ_MLX_BLAS");
