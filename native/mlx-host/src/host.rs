//! When a host kernel may stand in for MLX's own operations.

use std::io::Write;

use mlx_rs::{Array, Dtype, Stream, error::Exception};

use crate::ffi;

/// Whether the default stream is the CPU's, so that host kernels can run.
pub fn on_cpu() -> bool {
    ffi::is_cpu(&Stream::thread_local_or_default())
}

/// Ends the process with this code, and runs nothing that C++ registered to run at the end: CUDA's driver may already be
/// shut down by then, and MLX's static destructors abort the process when it is. What is to be written must have been
/// written; standard output is flushed here.
pub fn exit(code: u8) -> ! {
    // A closed pipe is no reason to end otherwise.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    ffi::exit(code)
}

/// Whether the default stream is the CPU's and all arrays are `f32`.
pub(crate) fn suits(arrays: &[&Array]) -> bool {
    arrays.iter().all(|a| a.dtype() == Dtype::Float32) && on_cpu()
}

/// An error unless `holds`.
#[track_caller]
pub(crate) fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), Exception> {
    if holds { Ok(()) } else { Err(Exception::custom(message())) }
}

/// Extents as `usize`. MLX's extents are never negative.
pub(crate) fn extents(shape: &[i32]) -> Vec<usize> {
    shape.iter().map(|&extent| extent as usize).collect()
}
