//! The quantized model as a tap that computes with integers.

use std::collections::HashMap;

use mlx_rs::Array;

use super::quantized::{ActivationPlan, nearest_step};
use crate::quant::{QuantizedLinear, WeightOnly};
use crate::{LayerId, LinearCall, Result, Tap, WeightOnlyCall};

/// Runs the model with layers that compute with integers, on the CPU. It never looks at the weights of the model's own
/// layers, so that those of a model that loads lazily are never read.
#[derive(Debug, Default)]
pub struct IntegerTap {
    timesteps: Vec<f32>,
    layers: HashMap<LayerId, QuantizedLinear>,
    weight_only: HashMap<LayerId, WeightOnly>,
    steps: Vec<usize>,
}

impl IntegerTap {
    /// A tap without layers, at the timesteps of this plan. Layers that it has not compute in full precision.
    pub fn new(plan: &ActivationPlan) -> Self {
        Self { timesteps: plan.timesteps.clone(), ..Self::default() }
    }

    /// Replaces a layer.
    pub fn insert(&mut self, id: &LayerId, layer: QuantizedLinear) {
        self.layers.insert(id.clone(), layer);
    }

    /// Replaces the weight of a layer whose input is not quantized.
    pub fn insert_weight_only(&mut self, id: &LayerId, weight: WeightOnly) {
        self.weight_only.insert(id.clone(), weight);
    }

    /// Bytes that the layers occupy.
    pub fn size(&self) -> usize {
        let weight_only = self.weight_only.values().map(WeightOnly::size);
        self.layers.values().map(QuantizedLinear::size).chain(weight_only).sum()
    }
}

impl Tap for IntegerTap {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.steps = timesteps.iter().map(|&t| nearest_step(&self.timesteps, t)).collect();
        Ok(())
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        match self.layers.get(&call.layer.id) {
            Some(layer) => layer.forward(call.input, call.bias, &self.steps),
            None => call.compute(),
        }
    }

    fn weight_only(&mut self, call: WeightOnlyCall<'_>) -> Result<Array> {
        match self.weight_only.get(&call.layer.id) {
            Some(layer) => call.compute_with(call.input, &layer.weight()?.as_dtype(call.input.dtype())?),
            None => call.compute(),
        }
    }
}
