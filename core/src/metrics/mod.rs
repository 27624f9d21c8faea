//! How far a result is from its reference: images by pixels, latents by their norm.
//!
//! Everything is computed in f64 from f32 values. Pixels are in 0..1.

mod difference;
mod ssim;

pub use difference::{mse, psnr, relative_l2, relative_l2_arrays};
pub use ssim::ssim;
