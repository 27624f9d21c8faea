//! A quantized model ready to run: with packed integers on the CPU, elsewhere with packed weights.

use mlx_rs::Dtype;

use super::integers::IntegerTap;
use super::packed::PackedTap;
use super::quantized::ActivationPlan;
use crate::quant::{Clipping, Grid, PackedLinear, PackedMatrix, QuantizedLinear, WeightOnly, nearest};
use crate::{LayerId, Model, Result, RoundedLayer, Tap};

/// The layers that are quantized; the others compute in full precision.
pub(super) struct QuantizedModel {
    activations: ActivationPlan,
    dtype: Dtype,
    layers: Layers,
}

enum Layers {
    Integers(IntegerTap),
    Packed(PackedTap),
}

impl QuantizedModel {
    /// A model of this element type without quantized layers yet, at the timesteps of this plan.
    pub fn new(activations: ActivationPlan, dtype: Dtype) -> Self {
        let layers = match mlx_host::on_cpu() {
            true => Layers::Integers(IntegerTap::new(&activations)),
            false => Layers::Packed(PackedTap::new(&activations)),
        };
        Self { activations, dtype, layers }
    }

    /// Replaces a layer.
    pub fn insert(&mut self, id: &LayerId, rounded: &RoundedLayer) -> Result<()> {
        let input = self.activations.input(id)?;
        match &mut self.layers {
            Layers::Integers(tap) => tap.insert(id, QuantizedLinear::new(rounded, input)?),
            Layers::Packed(tap) => tap.insert(id, PackedLinear::new(rounded, input, self.dtype)?),
        }
        Ok(())
    }

    /// Replaces a layer by its weight rounded to nearest, on a grid that is clipped where the squared error is smallest.
    pub fn insert_nearest(&mut self, model: &dyn Model, id: &LayerId, grid: &Grid) -> Result<()> {
        let weight = self.activations.weight(id, model.weight(id)?)?;
        self.insert(id, &nearest(&weight, grid, Clipping::Mse)?)
    }

    /// Replaces the weight of a layer whose input is not quantized.
    pub fn insert_weight_only(&mut self, id: &LayerId, rounded: &RoundedLayer) -> Result<()> {
        match &mut self.layers {
            Layers::Integers(tap) => tap.insert_weight_only(id, WeightOnly::new(rounded)?),
            Layers::Packed(tap) => tap.insert_weight_only(id, PackedMatrix::new(rounded, self.dtype)?),
        }
        Ok(())
    }

    /// Hands out the tap that runs it.
    pub fn run<T>(&mut self, with: impl FnOnce(&mut dyn Tap) -> Result<T>) -> Result<T> {
        match &mut self.layers {
            Layers::Integers(tap) => with(tap),
            Layers::Packed(tap) => with(tap),
        }
    }
}
