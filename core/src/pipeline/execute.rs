//! A quantized model ready to run: with packed integers on the CPU, elsewhere simulated.

use super::integers::IntegerTap;
use super::quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
use crate::quant::QuantizedLinear;
use crate::{LayerId, Result, RoundedLayer, Tap};

/// The layers that are quantized; the others compute in full precision.
pub(super) struct QuantizedModel {
    activations: ActivationPlan,
    layers: Layers,
}

enum Layers {
    Integers(IntegerTap),
    Simulated(QuantizedLayers),
}

impl QuantizedModel {
    /// A model without quantized layers yet, at the timesteps of this plan.
    pub fn new(activations: ActivationPlan) -> Self {
        let layers = match mlx_host::on_cpu() {
            true => Layers::Integers(IntegerTap::new(&activations)),
            false => Layers::Simulated(QuantizedLayers::new()),
        };
        Self { activations, layers }
    }

    /// Replaces a layer.
    pub fn insert(&mut self, id: &LayerId, rounded: &RoundedLayer) -> Result<()> {
        let input = self.activations.input(id)?;
        match &mut self.layers {
            Layers::Integers(tap) => tap.insert(id, QuantizedLinear::new(rounded, input)?),
            Layers::Simulated(layers) => _ = layers.insert(id.clone(), rounded.quantized(input)?),
        }
        Ok(())
    }

    /// Hands out the tap that runs it.
    pub fn run<T>(&mut self, with: impl FnOnce(&mut dyn Tap) -> Result<T>) -> Result<T> {
        match &mut self.layers {
            Layers::Integers(tap) => with(tap),
            Layers::Simulated(layers) => with(&mut QuantizedTap::new(&self.activations, layers)),
        }
    }
}
