//! Kernels in Rust that run inside MLX's lazy graph on the CPU.
//!
//! MLX's element-wise operations on the CPU are single-threaded. The few loops in which taq spends
//! its time run here instead: vectorised, on rayon's threads, as nodes of the same graph with
//! gradients of their own.

mod ffi;
mod kernel;
mod view;

pub use kernel::{HostKernel, Vjp};
pub use view::{Element, View, ViewMut};
