//! The kernels: each a host kernel and its equal of MLX operations behind one function.

mod activation;
mod attention;
mod gated_add;
mod group_norm;
mod linear;
mod norm;

pub use activation::{gelu_erf, gelu_tanh, quick_gelu, silu};
pub use attention::{Mask, attention};
pub use gated_add::gated_add;
pub use group_norm::group_norm_silu;
pub use linear::linear;
pub use norm::{layer_norm, layer_norm_modulate, rms_norm};
