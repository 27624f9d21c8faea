//! Euler's method on the rectified flow, as Stable Diffusion 3 is sampled.
//!
//! Follows `FlowMatchEulerDiscreteScheduler` of huggingface/diffusers@58eb52c080 and
//! `ModelSamplingDiscreteFlow` of argmaxinc/DiffusionKit@498e5db, which agree. Both shift twice: the table of
//! 1,000 training sigmas is shifted once, the inference schedule runs evenly from its largest to its smallest
//! entry, and that is shifted again. The step is `x + (σ' − σ) · v`.

use mlx_rs::Array;
use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::{Error, ModelDefaults, Result, Sampler, Schedule, StepAt, register};

/// Timesteps that the model was trained on.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// Settings of `euler`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EulerSettings {
    /// Timestep shift, > 0; 1 leaves the schedule even. Default: the model's (3 for Stable Diffusion 3).
    pub shift: Option<f64>,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Euler {
    shift: f64,
}

impl Euler {
    /// A sampler with the settings' shift, or else the model's.
    pub fn new(settings: EulerSettings, defaults: &ModelDefaults) -> Result<Self> {
        let shift = settings.shift.unwrap_or(f64::from(defaults.shift));
        if !(shift.is_finite() && shift > 0.0) {
            return Err(Error::settings(
                "sampler `euler`",
                format!("shift must be a positive number, not {shift}"),
            ));
        }
        Ok(Self { shift })
    }

    /// σ ← s σ / (1 + (s − 1) σ).
    fn shifted(&self, sigma: f64) -> f64 {
        self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
    }
}

impl Sampler for Euler {
    fn schedule(&self, steps: usize) -> Result<Schedule> {
        if steps == 0 {
            return Err(Error::settings("sampler `euler`", "steps must be at least 1, not 0"));
        }
        let (first, last) = (self.shifted(1.0), self.shifted(1.0 / TRAIN_TIMESTEPS));
        let spacing = if steps > 1 { (last - first) / (steps - 1) as f64 } else { 0.0 };
        let sigmas: Vec<f64> = (0..steps).map(|i| self.shifted(first + spacing * i as f64)).collect();
        let timesteps = sigmas.iter().map(|s| (s * TRAIN_TIMESTEPS) as f32).collect();
        let sigmas = sigmas.iter().map(|&s| s as f32).chain([0.0]).collect();
        Ok(Schedule { sigmas, timesteps })
    }

    fn step(&self, x: &Array, model_output: &Array, at: StepAt) -> Result<Array> {
        Ok(x.add(model_output.multiply(Array::from_f32(at.sigma_next - at.sigma))?)?)
    }
}

register!(
    Sampler,
    "euler",
    EulerSettings,
    Euler::new,
    "Euler steps on shifted rectified-flow sigmas, as diffusers' FlowMatchEulerDiscreteScheduler."
);

#[cfg(test)]
mod tests {
    use super::*;

    fn euler(shift: f64) -> Euler {
        Euler { shift }
    }

    #[test]
    fn ends_of_the_schedule_are_those_of_diffusers() {
        for steps in [4, 28, 50, 100] {
            let schedule = euler(3.0).schedule(steps).unwrap();
            assert_eq!(schedule.sigmas.len(), steps + 1);
            assert_eq!(schedule.sigmas[0], 1.0);
            assert!((schedule.sigmas[steps - 1] - 0.008_928_57).abs() < 1e-7);
            assert_eq!(schedule.sigmas[steps], 0.0);
            assert_eq!(schedule.timesteps.len(), steps);
        }
    }

    #[test]
    fn shift_one_is_even() {
        let schedule = euler(1.0).schedule(3).unwrap();
        for (found, expected) in schedule.sigmas.iter().zip([1.0, 0.5005, 0.001, 0.0]) {
            assert!((found - expected).abs() < 1e-7);
        }
    }

    #[test]
    fn step_moves_along_the_velocity() {
        let x = Array::from_slice(&[1.0f32, -2.0], &[1, 2]);
        let v = Array::from_slice(&[0.5f32, 4.0], &[1, 2]);
        let at = StepAt { step: 0, sigma: 1.0, sigma_next: 0.75 };
        let next = euler(3.0).step(&x, &v, at).unwrap();
        assert_eq!(next.to_vec_exact::<f32>().unwrap(), [0.875, -3.0]);
    }

    #[test]
    fn no_steps_is_an_error() {
        assert!(euler(3.0).schedule(0).unwrap_err().to_string().contains("at least 1"));
    }
}
