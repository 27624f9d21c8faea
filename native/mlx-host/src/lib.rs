//! Kernels in Rust that run inside MLX's lazy graph on the CPU.
//!
//! MLX's element-wise operations on the CPU are single-threaded. The few loops in which taq spends
//! its time run here instead: vectorised, on rayon's threads, as nodes of the same graph with
//! gradients of their own.
//!
//! [`HostKernel`] makes such a node out of a closure. The functions are ready-made kernels: on the
//! CPU and for `f32` they run on the host, elsewhere they are compositions of MLX operations with
//! the same result. Their gradients cannot be differentiated again on the host.
//!
//! Results do not depend on the number of threads.
//!
//! [`on_cpu`] and [`exit`] belong to no kernel: they are what else taq needs of MLX's process-wide state.

mod ffi;
mod host;
mod kernel;
mod kernels;
mod simd;
mod view;

pub use host::{exit, on_cpu};
pub use kernel::{HostKernel, Vjp};
pub use kernels::*;
pub use view::{Element, View, ViewMut};
