//! One layer being learned: its weight and its input.

use mlx_rs::Array;
use taq_core::quant::{QuantizedLayer, is_finite};
use taq_core::{LayerGradients, Result, RoundedLayer};

use super::adam::Adam;
use super::hard::HardWeight;
use super::inputs::InputLearner;
use super::weights::{Step, WeightLearner};

/// See the module's head.
pub(in crate::rounders) struct LayerLearner {
    weight: Weight,
    input: InputLearner,
    /// Rounded to nearest, and to where learning began, both on the first grids of its input.
    nearest: RoundedLayer,
    start: RoundedLayer,
}

enum Weight {
    Soft(Box<WeightLearner>),
    Hard(Box<HardWeight>),
}

impl LayerLearner {
    /// A layer that begins with this weight and this input.
    pub(in crate::rounders) fn new(weight: WeightLearner, input: InputLearner) -> Result<Self> {
        let learned = input.learned()?;
        let start = RoundedLayer { learned: learned.clone(), ..weight.harden()? };
        let nearest = RoundedLayer { learned, ..weight.nearest().clone() };
        Ok(Self { weight: Weight::Soft(Box::new(weight)), input, nearest, start })
    }

    /// A layer whose integers are fixed.
    pub(in crate::rounders) fn rounded_before(rounded: RoundedLayer, input: InputLearner) -> Result<Self> {
        let weight = Weight::Hard(Box::new(HardWeight::new(rounded.clone())?));
        Ok(Self { weight, input, nearest: rounded.clone(), start: rounded })
    }

    /// Rounded to nearest, on the first grids of its input.
    pub(in crate::rounders) fn nearest(&self) -> RoundedLayer {
        self.nearest.clone()
    }

    /// Where learning began, on the first grids of its input.
    pub(in crate::rounders) fn start(&self) -> RoundedLayer {
        self.start.clone()
    }

    /// The layer with the present variables.
    pub(in crate::rounders) fn quantized(&self) -> Result<QuantizedLayer> {
        let weight = match &self.weight {
            Weight::Soft(weight) => weight.soft()?,
            Weight::Hard(weight) => weight.values()?,
        };
        let (input, bias) = self.input.arrays()?;
        Ok(QuantizedLayer { weight, input, bias })
    }

    /// Takes the sizes of the gradients.
    pub(in crate::rounders) fn calibrate(&mut self, gradients: &LayerGradients) -> Result<()> {
        match &mut self.weight {
            Weight::Soft(weight) => weight.calibrate(&gradients.weight),
            Weight::Hard(_) => Ok(()),
        }
    }

    /// One step of the weight and of the input; `left` is the share of their learning rates that is left, that of the
    /// rounding apart. Lazy.
    pub(in crate::rounders) fn step(
        &mut self,
        gradients: &LayerGradients,
        step: &Step,
        left: f32,
    ) -> Result<()> {
        match &mut self.weight {
            Weight::Soft(weight) => weight.step(&gradients.weight, step)?,
            Weight::Hard(weight) => {
                let adam = Adam::new(self.input.rates().scale * left, step.iteration);
                weight.step(adam, &gradients.weight)?;
            }
        }
        self.input.step(gradients, step.iteration, left)
    }

    /// What has to be evaluated.
    pub(in crate::rounders) fn arrays(&self) -> Vec<&Array> {
        let mut arrays = match &self.weight {
            Weight::Soft(weight) => weight.arrays().to_vec(),
            Weight::Hard(weight) => weight.arrays().to_vec(),
        };
        arrays.extend(self.input.variables());
        arrays
    }

    /// False once a gradient was not finite.
    pub(in crate::rounders) fn is_finite(&self) -> Result<bool> {
        let weight = match &self.weight {
            Weight::Soft(weight) => weight.is_finite()?,
            Weight::Hard(weight) => weight.is_finite()?,
        };
        for array in self.input.variables() {
            if !is_finite(array)? {
                return Ok(false);
            }
        }
        Ok(weight)
    }

    /// Fixes the integers.
    pub(in crate::rounders) fn harden(&mut self) -> Result<()> {
        if let Weight::Soft(weight) = &self.weight {
            self.weight = Weight::Hard(Box::new(HardWeight::new(weight.harden()?)?));
            self.input.rest()?;
        }
        Ok(())
    }

    /// The integers, and what was learned of the input.
    pub(in crate::rounders) fn rounded(&self) -> Result<RoundedLayer> {
        let weight = match &self.weight {
            Weight::Soft(weight) => weight.harden()?,
            Weight::Hard(weight) => weight.rounded()?,
        };
        Ok(RoundedLayer { learned: self.input.learned()?, ..weight })
    }

    /// Weights that are decided, and weights that have a choice.
    pub(in crate::rounders) fn decided(&self) -> Result<(usize, usize)> {
        match &self.weight {
            Weight::Soft(weight) => weight.decided(),
            Weight::Hard(_) => Ok((0, 0)),
        }
    }
}
