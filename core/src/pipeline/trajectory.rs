//! One guided trajectory of a batch, from start noise to the final latent.

use mlx_rs::Array;

use super::Guidance;
use crate::{Conditioning, Context, Model, Result, Sampler, Schedule, Tap};

/// A batch on its way through the schedule.
pub struct Trajectory<'a> {
    /// What predicts the velocity.
    pub model: &'a dyn Model,
    /// What takes the steps.
    pub sampler: &'a dyn Sampler,
    /// Where the steps are.
    pub schedule: &'a Schedule,
    /// How strongly the prompts pull.
    pub guidance: Guidance,
    /// Rows as [`Guidance::conditioning`] makes them.
    pub conditioning: &'a Conditioning,
}

impl Trajectory<'_> {
    /// Runs all steps from the noise `[batch, h, w, channels]` and returns the final latent. `before` sees the
    /// latent before each step, evaluated.
    pub fn run(
        &self,
        noise: Array,
        tap: &mut dyn Tap,
        cx: &Context,
        before: impl FnMut(&Array, usize) -> Result<()>,
    ) -> Result<Array> {
        self.run_from(0, noise, tap, cx, before)
    }

    /// [`Self::run`] of the steps from `first` on; `x` is the latent at that step's noise level.
    pub fn run_from(
        &self,
        first: usize,
        mut x: Array,
        tap: &mut dyn Tap,
        cx: &Context,
        mut before: impl FnMut(&Array, usize) -> Result<()>,
    ) -> Result<Array> {
        for step in first..self.schedule.steps() {
            cx.check()?;
            before(&x, step)?;
            let timestep = self.schedule.timesteps[step];
            let velocity = self.guidance.velocity(self.model, &x, timestep, self.conditioning, tap)?;
            x = self.sampler.step(&x, &velocity, self.schedule.at(step))?;
            x.eval()?;
        }
        Ok(x)
    }
}
