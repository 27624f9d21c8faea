//! How far a result is from its reference: images by pixels, latents by their norm, sets of images by what a
//! network sees in them.
//!
//! Everything is computed in f64 from f32 values. Pixels are in 0..1, as the VAE decodes them: they are not rounded
//! to the 8 bits of a PNG file first. Figures over images come with intervals ([`bootstrap`]).

mod bootstrap;
mod difference;
mod features;
mod frechet;
mod inception_score;
mod kernel_distance;
mod levels;
mod rank;
mod ssim;

pub use bootstrap::{Interval, RESAMPLES, bootstrap};
pub use difference::{decibels, mse, psnr, relative_l2, relative_l2_arrays};
pub use features::Features;
pub use frechet::frechet_distance;
pub use inception_score::{InceptionScore, inception_score};
pub use kernel_distance::{KernelDistance, kernel_distance, paired_kernel_distance};
pub use levels::{LevelDifference, level_difference};
pub use rank::spearman;
pub use ssim::ssim;
