//! A quantized model ready to run: with packed integers on the CPU, elsewhere simulated.

use std::collections::HashMap;

use mlx_rs::Array;

use super::integers::IntegerTap;
use super::quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
use crate::quant::{QuantizedLinear, WeightOnly};
use crate::{LayerId, Result, RoundedLayer, Tap};

/// The layers that are quantized; the others compute in full precision.
pub(super) struct QuantizedModel {
    activations: ActivationPlan,
    layers: Layers,
}

enum Layers {
    Integers(IntegerTap),
    Simulated(QuantizedLayers, HashMap<LayerId, Array>),
}

impl QuantizedModel {
    /// A model without quantized layers yet, at the timesteps of this plan.
    pub fn new(activations: ActivationPlan) -> Self {
        let layers = match mlx_host::on_cpu() {
            true => Layers::Integers(IntegerTap::new(&activations)),
            false => Layers::Simulated(QuantizedLayers::new(), HashMap::new()),
        };
        Self { activations, layers }
    }

    /// Replaces a layer.
    pub fn insert(&mut self, id: &LayerId, rounded: &RoundedLayer) -> Result<()> {
        let input = self.activations.input(id)?;
        match &mut self.layers {
            Layers::Integers(tap) => tap.insert(id, QuantizedLinear::new(rounded, input)?),
            Layers::Simulated(layers, _) => _ = layers.insert(id.clone(), rounded.quantized(input)?),
        }
        Ok(())
    }

    /// Replaces the weight of a layer whose input is not quantized.
    pub fn insert_weight_only(&mut self, id: &LayerId, rounded: &RoundedLayer) -> Result<()> {
        match &mut self.layers {
            Layers::Integers(tap) => tap.insert_weight_only(id, WeightOnly::new(rounded)?),
            Layers::Simulated(_, weights) => _ = weights.insert(id.clone(), rounded.dequantize()?),
        }
        Ok(())
    }

    /// Hands out the tap that runs it.
    pub fn run<T>(&mut self, with: impl FnOnce(&mut dyn Tap) -> Result<T>) -> Result<T> {
        match &mut self.layers {
            Layers::Integers(tap) => with(tap),
            Layers::Simulated(layers, weights) => {
                with(&mut QuantizedTap::new(&self.activations, layers).with_weight_only(weights))
            }
        }
    }
}
