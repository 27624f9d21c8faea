//! The sampler: from noise to a latent along a schedule.

use mlx_rs::Array;

use crate::Result;

/// Noise levels and what the model is told of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// `steps + 1` noise levels, falling from 1; the last is 0.
    pub sigmas: Vec<f32>,
    /// `steps` model timesteps (1000 σ).
    pub timesteps: Vec<f32>,
}

impl Schedule {
    /// How many times the model is called.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Step `step` of the schedule.
    pub fn at(&self, step: usize) -> StepAt {
        StepAt { step, sigma: self.sigmas[step], sigma_next: self.sigmas[step + 1] }
    }
}

/// Where in the schedule a step stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepAt {
    /// Position from 0.
    pub step: usize,
    /// Noise level before the step.
    pub sigma: f32,
    /// Noise level after it.
    pub sigma_next: f32,
}

/// A deterministic sampler for models that predict a velocity.
///
/// ```
/// use taq_core::{Result, Sampler, Schedule, StepAt, mlx_rs::Array};
///
/// /// Euler on evenly spaced noise levels.
/// struct Linear;
///
/// impl Sampler for Linear {
///     fn schedule(&self, steps: usize) -> Result<Schedule> {
///         let sigmas: Vec<f32> = (0..=steps).map(|i| 1.0 - i as f32 / steps as f32).collect();
///         let timesteps = sigmas[..steps].iter().map(|s| 1000.0 * s).collect();
///         Ok(Schedule { sigmas, timesteps })
///     }
///     fn step(&self, x: &Array, velocity: &Array, at: StepAt) -> Result<Array> {
///         Ok(x.add(velocity.multiply(Array::from_f32(at.sigma_next - at.sigma))?)?)
///     }
/// }
/// assert_eq!(Linear.schedule(2).unwrap().sigmas, [1.0, 0.5, 0.0]);
/// ```
pub trait Sampler {
    /// The schedule for a number of steps (at least 1).
    fn schedule(&self, steps: usize) -> Result<Schedule>;

    /// One step: the latent at `at.sigma_next` from the latent and the model's output at `at.sigma`, both
    /// `[batch, h, w, channels]`, f32.
    fn step(&self, x: &Array, model_output: &Array, at: StepAt) -> Result<Array>;

    /// The latent at noise level `sigma`: `sigma · noise + (1 − sigma) · latent` for rectified flow.
    fn add_noise(&self, latent: &Array, noise: &Array, sigma: f32) -> Result<Array> {
        let noise = noise.multiply(Array::from_f32(sigma))?;
        Ok(latent.multiply(Array::from_f32(1.0 - sigma))?.add(noise)?)
    }
}
