//! Kernels in Rust that run inside MLX's lazy graph on the CPU.
