//! AdaRound, block by block: learns for every weight whether to round it up or down, all layers of a block
//! jointly, so that the block's output changes least.
//!
//! Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization* (arXiv 2004.10568); blocks as in
//! BRECQ (Li et al., arXiv 2102.05426; yhhhli/BRECQ `quant/block_recon.py`). A weight becomes
//!
//! ```text
//! ŵ = s · (clamp(⌊w/s⌋ + z + h(V), qmin, qmax) − z),   h(V) = clip(1.2 · sigmoid(V) − 0.1, 0, 1)
//! ```
//!
//! V starts where ŵ = w, Adam moves it, a regulariser drives h to 0 or 1, and at the end V ≥ 0 rounds up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::Clipping;
use taq_core::{BlockJob, Context, Result, RoundedBlock, Rounder, register};

use super::reconstruct::{BetaSchedule, InputLearner, LayerLearner, Recipe, Start, needs_rows};

/// Settings of `adaround`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdaRoundSettings {
    /// Steps of the optimiser for each block.
    #[schemars(range(min = 1))]
    pub iters: usize,
    /// Calibration rows (an image at a timestep) in each step.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Adam's learning rate. A weight must be able to cross the whole range of V, about 5: `lr` · `iters` below 10
    /// leaves many where they began.
    pub lr: f32,
    /// Pull of the regulariser on a weight, in units of the error's typical pull on a weight of the same layer.
    pub lambda: f32,
    /// Exponent of the regulariser after the warm-up and at the end: large ones act on what is nearly decided,
    /// small ones on all.
    pub beta: [f32; 2],
    /// How the exponent goes from the first to the last value.
    pub schedule: BetaSchedule,
    /// Share of the iterations before the regulariser sets in, 0 to below 1.
    pub warm_up: f32,
    /// Which integers learning begins at.
    pub start: Start,
    /// Where the outermost grid points go: `absmax` clips nothing, `mse` minimises the squared rounding error.
    pub clipping: Clipping,
}

impl Default for AdaRoundSettings {
    fn default() -> Self {
        Self {
            iters: 1000,
            batch_size: 16,
            lr: 0.02,
            lambda: 1.0,
            beta: [20.0, 2.0],
            schedule: BetaSchedule::Linear,
            warm_up: 0.2,
            start: Start::default(),
            clipping: Clipping::Mse,
        }
    }
}

/// The rounder `adaround`.
#[derive(Debug, Clone, Copy)]
pub struct AdaRound {
    recipe: Recipe,
    start: Start,
    clipping: Clipping,
}

impl AdaRound {
    /// A rounder with these settings; [`taq_core::Error::Settings`] if one is out of range.
    pub fn new(settings: AdaRoundSettings) -> Result<Self> {
        let AdaRoundSettings { iters, batch_size, lr, lambda, beta, schedule, warm_up, start, clipping } =
            settings;
        let recipe = Recipe {
            rounder: "adaround",
            iters,
            batch_size,
            lr,
            lambda,
            beta,
            schedule,
            warm_up,
            drop: 0.0,
            polish: 0,
            end_to_end: 0,
        };
        recipe.check()?;
        Ok(Self { recipe, start, clipping })
    }
}

impl Rounder for AdaRound {
    /// Learns, rounds hard, and compares with rounding to nearest on the same grid: if that has the smaller error on
    /// the held-out rows, it is returned instead and a warning tells so.
    ///
    /// Fails with [`taq_core::Error::NotFinite`] if a weight, the error or its gradient is NaN or infinite.
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        cx.check()?;
        needs_rows(self.recipe.rounder, job)?;
        let moments = self.start.moments(job, cx)?;
        let learners = job.layers.iter().zip(&moments).map(|(layer, moments)| {
            let weight = Start::weight(layer, self.clipping, &[], moments.as_ref())?;
            LayerLearner::new(weight, InputLearner::planned(&layer.input))
        });
        let learners = learners.collect::<Result<_>>()?;
        self.recipe.reconstruct(job, learners, cx)
    }

    fn iterations(&self) -> u64 {
        self.recipe.units()
    }
}

register!(
    Rounder,
    "adaround",
    AdaRoundSettings,
    AdaRound::new,
    "Learns block by block whether each weight is rounded up or down (AdaRound, BRECQ)."
);
