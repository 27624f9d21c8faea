//! One layer being learned: its weight and its input.

use mlx_rs::Array;
use taq_core::quant::QuantizedLayer;
use taq_core::{Result, RoundedLayer};

use super::adam::Adam;
use super::hard::HardWeight;
use super::inputs::InputLearner;
use super::weights::{Step, WeightLearner};

/// Derivatives of the error in host memory.
pub(in crate::rounders) struct Gradients<'a> {
    /// Row-major `[out_features, in_features]`.
    pub(in crate::rounders) weight: &'a [f32],
    /// `[steps]`.
    pub(in crate::rounders) scale: &'a [f32],
    /// Row-major `[steps, out_features]`, or empty.
    pub(in crate::rounders) bias: &'a [f32],
}

/// See the module's head.
pub(in crate::rounders) struct LayerLearner {
    weight: WeightLearner,
    hard: Option<HardWeight>,
    input: InputLearner,
    start: RoundedLayer,
}

impl LayerLearner {
    /// A layer that begins with this weight and this input.
    pub(in crate::rounders) fn new(weight: WeightLearner, input: InputLearner) -> Self {
        let start = RoundedLayer { learned: input.learned(weight.multiplier()), ..weight.nearest().clone() };
        Self { weight, hard: None, input, start }
    }

    /// Where it began: rounded to nearest, on the first grids of its input.
    pub(in crate::rounders) fn start(&self) -> RoundedLayer {
        self.start.clone()
    }

    /// The layer with the present variables.
    pub(in crate::rounders) fn quantized(&self) -> Result<QuantizedLayer> {
        let shape = self.weight.shape();
        let values = self.hard.as_ref().map_or(self.weight.soft(), HardWeight::values);
        let weight = Array::from_slice(values, &shape.map(|n| n as i32));
        let (input, bias) = self.input.arrays(shape, self.weight.multiplier())?;
        Ok(QuantizedLayer { weight, input, bias })
    }

    /// Takes the sizes of the gradients; false if one is not finite.
    pub(in crate::rounders) fn calibrate(&mut self, gradients: &Gradients<'_>) -> bool {
        self.weight.calibrate(gradients.weight)
    }

    /// One step of the rounding and of the input; `left` is the share of the input's learning rates that is left.
    pub(in crate::rounders) fn step(&mut self, gradients: &Gradients<'_>, step: &Step, left: f32) -> bool {
        self.input.step(gradients, step.iteration, left) && self.weight.step(gradients.weight, step)
    }

    /// Fixes the integers.
    pub(in crate::rounders) fn harden(&mut self) {
        let learned = self.input.learned(self.weight.multiplier());
        self.hard = Some(HardWeight::new(RoundedLayer { learned, ..self.weight.harden() }));
        self.input.rest();
    }

    /// One step of the step sizes of weight and input, the integers being fixed.
    pub(in crate::rounders) fn polish(
        &mut self,
        gradients: &Gradients<'_>,
        iteration: usize,
        left: f32,
    ) -> bool {
        let adam = Adam::new(self.input.rates().scale * left, iteration);
        let finite = self.hard.as_mut().is_some_and(|hard| hard.step(adam, gradients.weight));
        finite && self.input.step(gradients, iteration, left)
    }

    /// The integers, and what was learned of the input.
    pub(in crate::rounders) fn rounded(&self) -> RoundedLayer {
        let learned = self.input.learned(self.weight.multiplier());
        let hard = self.hard.as_ref().map(|h| h.rounded().clone());
        RoundedLayer { learned, ..hard.unwrap_or_else(|| self.weight.harden()) }
    }

    /// Weights that are decided, and weights that have a choice.
    pub(in crate::rounders) fn decided(&self) -> (usize, usize) {
        self.weight.decided()
    }
}
