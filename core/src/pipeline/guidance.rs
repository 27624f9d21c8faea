//! Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) on velocities, as in diffusers' SD3 pipeline.

use mlx_rs::{Array, Dtype, ops};

use crate::{Conditioning, Error, Model, Result, Tap};

/// How strongly a prompt pulls away from the unconditional velocity: `v = v₋ + w (v₊ − v₋)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    weight: f32,
}

impl Guidance {
    /// Guidance of this weight; 0 switches it off, and the model runs on the prompt alone.
    pub fn new(weight: f32) -> Result<Self> {
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(Error::settings(
                "cfg_weight",
                format!("must be 0 or a positive number, not {weight}"),
            ));
        }
        Ok(Self { weight })
    }

    /// Whether every image takes two rows of a forward pass.
    pub fn is_on(self) -> bool {
        self.weight > 0.0
    }

    /// Rows of a forward pass for each image.
    pub fn rows_per_image(self) -> usize {
        if self.is_on() { 2 } else { 1 }
    }

    /// The conditioning of one forward pass: all prompts, then (if on) as many unconditional rows.
    pub fn conditioning(self, prompts: &Conditioning, empty: &Conditioning) -> Result<Conditioning> {
        if !self.is_on() {
            return Ok(prompts.clone());
        }
        let empty = empty.rows(&vec![0; prompts.len()])?;
        Conditioning::concat(&[prompts, &empty])
    }

    /// The latents of one forward pass, in the rows of [`Self::conditioning`].
    pub fn latents(self, x: &Array) -> Result<Array> {
        if self.is_on() { Ok(ops::concatenate(&[x, x], 0)?) } else { Ok(x.clone()) }
    }

    /// One guided velocity for each image, `[batch, h, w, channels]`, f32; `conditioning` is that of
    /// [`Self::conditioning`], and all rows are at `timestep`.
    pub fn velocity(
        self,
        model: &dyn Model,
        x: &Array,
        timestep: f32,
        conditioning: &Conditioning,
        tap: &mut dyn Tap,
    ) -> Result<Array> {
        let timesteps = vec![timestep; x.dim(0) as usize * self.rows_per_image()];
        let velocity = model.denoise(&self.latents(x)?, &timesteps, conditioning, tap)?;
        let velocity = velocity.as_dtype(Dtype::Float32)?;
        if !self.is_on() {
            return Ok(velocity);
        }
        let halves = velocity.split_equal(2, 0)?;
        let pull = halves[0].subtract(&halves[1])?.multiply(Array::from_f32(self.weight))?;
        Ok(halves[1].add(pull)?)
    }
}
