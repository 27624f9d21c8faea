//! TaQ-DiT's joint reconstruction: the rounding of a block's weights and the grids of its inputs, learned in one
//! backward pass.
//!
//! Liu et al., *TaQ-DiT: Time-aware Quantization for Diffusion Transformers* (arXiv 2411.14172), after the authors'
//! code, 6xy-liu/Taq-DiT@749208e: AdaRound for weights, LSQ for step sizes of activations that begin where their error
//! is smallest, QDrop, and for inputs that come from a GELU a shift of every channel and a migration of the outlier
//! channels' range to the weight by integer factors.
//!
//! | here | there | why |
//! |---|---|---|
//! | inputs of linear layers only | also q, k, v, softmax and its product | attention stays in floating point |
//! | symmetric around a shift | asymmetric with a zero point | a shift per channel contains the zero point |
//! | the block is one unit | attention and MLP are two | joint attention couples both streams |
//! | `scale_lr` is relative | 4e-5 absolute | suits step sizes of any magnitude |
//! | `lambda` per weight | 0.01, over a sum | [`super::reconstruct`] tells |
//! | begins where GPTQ rounds | where the weight is | gets further in as many steps; `start` chooses |
//! | grids and factors are found before learning, and only where the layer's output gains on other rows | rounded anew in every step | the weight pays for them |
//! | all inputs are shifted | those after a GELU | the layers' inputs after AdaLN are centred elsewhere in every channel; `shift` chooses |
//! | `per_timestep`, `bias_lr`, `polish`, `end_to_end` | none | what a static quantizer cannot do; 0 and false switch them off |

use mlx_rs::Array;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::Clipping;
use taq_core::{BlockJob, Context, Error, LayerJob, Result, RoundedBlock, RoundedLayer, Rounder, register};

use super::reconstruct::{
    BetaSchedule, Calibrated, InputCalibration, InputLearner, InputRates, InputStart, Inputs, LayerLearner,
    Recipe, Start, calibrate_inputs, needs_rows,
};

/// Settings of `taq-dit`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaqDitSettings {
    /// Steps of the optimiser for each block (the paper's code: 20,000).
    #[schemars(range(min = 1))]
    pub iters: usize,
    /// Calibration rows (an image at a timestep) in each step.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Adam's learning rate of the rounding. A weight must be able to cross the whole range of V, about 5: `lr` · `iters`
    /// below 10 leaves many where they began.
    pub lr: f32,
    /// Pull of the regulariser on a weight, in units of the error's typical pull on a weight of the same layer.
    pub lambda: f32,
    /// Exponent of the regulariser after the warm-up and at the end.
    pub beta: [f32; 2],
    /// How the exponent goes from the first to the last value.
    pub schedule: BetaSchedule,
    /// Share of the iterations before the regulariser sets in, 0 to below 1.
    pub warm_up: f32,
    /// Which integers learning begins at.
    pub start: Start,
    /// Where the outermost points of the weights' grids go: `absmax` clips nothing, `mse` minimises the squared rounding
    /// error.
    pub clipping: Clipping,
    /// Share of the elements, of the block's input and of every layer's, that stay in full precision in a step (QDrop); 0
    /// to below 1.
    pub drop_prob: f32,
    /// Adam's learning rate of the logarithm of step sizes, falling to 0 along half a cosine; 0 leaves them where they
    /// begin.
    pub scale_lr: f32,
    /// Adam's learning rate of a correction of every output's bias, in units of the output's typical rounding error,
    /// falling likewise; 0 for none.
    pub bias_lr: f32,
    /// Whether every timestep has its own step sizes and shifts, or all have the same (TaQ-DiT). Each of one's own is learned
    /// from the few rows of its timestep: on the embedded model that costs more than it gains.
    pub per_timestep: bool,
    /// Inputs whose channels are centred by a shift, where the layer's output gains.
    pub shift: Inputs,
    /// Inputs whose outlier channels are moved to the weight by integer factors, where the layer's output gains.
    pub migrate: Inputs,
    /// Further steps with the integers fixed, of the step sizes of weights and inputs and of the biases.
    pub polish: usize,
    /// Further such steps over all blocks at once, after the last one; 0 for none. On the embedded model at W4A8, 150 of them
    /// lower the held-out error of the last block by 0.4 %.
    pub end_to_end: usize,
}

impl Default for TaqDitSettings {
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
            drop_prob: 0.5,
            scale_lr: 1e-3,
            bias_lr: 0.02,
            per_timestep: false,
            shift: Inputs::All,
            migrate: Inputs::PostGelu,
            polish: 100,
            end_to_end: 0,
        }
    }
}

/// The rounder `taq-dit`.
#[derive(Debug, Clone, Copy)]
pub struct TaqDit {
    recipe: Recipe,
    start: Start,
    clipping: Clipping,
    inputs: InputCalibration,
    rates: InputRates,
}

impl TaqDit {
    /// A rounder with these settings; [`Error::Settings`] if one is out of range.
    pub fn new(settings: TaqDitSettings) -> Result<Self> {
        let TaqDitSettings { scale_lr, bias_lr, per_timestep, shift, migrate, .. } = settings;
        let recipe = Recipe {
            rounder: "taq-dit",
            iters: settings.iters,
            batch_size: settings.batch_size,
            lr: settings.lr,
            lambda: settings.lambda,
            beta: settings.beta,
            schedule: settings.schedule,
            warm_up: settings.warm_up,
            drop: settings.drop_prob,
            polish: settings.polish,
            end_to_end: settings.end_to_end,
        };
        recipe.check()?;
        for (name, rate) in [("scale_lr", scale_lr), ("bias_lr", bias_lr)] {
            if !(rate.is_finite() && rate >= 0.0) {
                return Err(Error::settings(
                    "rounder `taq-dit`",
                    format!("{name} = {rate}, expected 0 or more"),
                ));
            }
        }
        Ok(Self {
            recipe,
            start: settings.start,
            clipping: settings.clipping,
            inputs: InputCalibration { per_timestep, shift, migrate, clipping: settings.clipping },
            rates: InputRates { scale: scale_lr, bias: bias_lr },
        })
    }

    fn learner(&self, layer: &LayerJob, input: Calibrated, moments: Option<&Array>) -> Result<LayerLearner> {
        let Calibrated { groups, scale, shift, multiplier, rms } = input;
        let weight = Start::weight(layer, self.clipping, &multiplier, moments)?;
        let bias_unit = weight.typical_error() * rms;
        let start = InputStart { groups, scale, shift, multiplier, bias_unit, rates: self.rates };
        LayerLearner::new(weight, InputLearner::calibrated(&layer.input, layer.spec.out_features, start)?)
    }
}

impl Rounder for TaqDit {
    /// Calibrates the inputs, learns, rounds hard, polishes, and compares with where it began, as `adaround` does.
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        cx.check()?;
        needs_rows(self.recipe.rounder, job)?;
        let inputs = calibrate_inputs(job, self.inputs, cx)?;
        let moments = self.start.moments(job, cx)?;
        let each = job.layers.iter().zip(inputs).zip(&moments);
        let learners = each.map(|((layer, input), moments)| self.learner(layer, input, moments.as_ref()));
        let learners = learners.collect::<Result<_>>()?;
        self.recipe.reconstruct(job, learners, cx)
    }

    fn iterations(&self) -> u64 {
        self.recipe.units()
    }

    /// Step sizes of weights and inputs, and biases, by the error of the model's output.
    fn end_to_end(
        &self,
        job: &BlockJob<'_>,
        rounded: Vec<RoundedLayer>,
        cx: &Context,
    ) -> Result<Option<RoundedBlock>> {
        cx.check()?;
        needs_rows(self.recipe.rounder, job)?;
        let learners = job.layers.iter().zip(rounded).map(|(layer, rounded)| {
            let input = InputLearner::again(&layer.input, &rounded, self.inputs.per_timestep, self.rates)?;
            LayerLearner::rounded_before(rounded, input)
        });
        self.recipe.end_to_end(job, learners.collect::<Result<_>>()?, cx).map(Some)
    }

    fn end_to_end_iterations(&self) -> u64 {
        self.recipe.end_to_end as u64
    }
}

register!(
    Rounder,
    "taq-dit",
    TaqDitSettings,
    TaqDit::new,
    "Learns rounding and the grids of the inputs jointly, block by block (TaQ-DiT, QDrop)."
);
