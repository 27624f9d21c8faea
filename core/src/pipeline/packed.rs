//! The quantized model as a tap whose layers keep their weights packed, for GPUs.

use std::collections::HashMap;

use mlx_rs::Array;

use super::quantized::{ActivationPlan, nearest_step};
use crate::quant::{InputQuantizer, PackedLinear, PackedMatrix};
use crate::{LayerId, LinearCall, Result, Tap, WeightOnlyCall};

/// Runs the model with layers whose weights stay packed. It never looks at the weights of the model's own layers, so that
/// those of a model that loads lazily are never read.
#[derive(Debug)]
pub struct PackedTap {
    timesteps: Vec<f32>,
    layers: HashMap<LayerId, PackedLinear>,
    weight_only: HashMap<LayerId, PackedMatrix>,
    quantizer: InputQuantizer,
    steps: Vec<usize>,
}

impl PackedTap {
    /// A tap without layers, at the timesteps of this plan. Layers that it has not compute in full precision.
    pub fn new(plan: &ActivationPlan) -> Self {
        Self {
            timesteps: plan.timesteps.clone(),
            layers: HashMap::new(),
            weight_only: HashMap::new(),
            quantizer: InputQuantizer::default(),
            steps: Vec::new(),
        }
    }

    /// Replaces a layer.
    pub fn insert(&mut self, id: &LayerId, layer: PackedLinear) {
        self.layers.insert(id.clone(), layer);
    }

    /// Replaces the weight of a layer whose input is not quantized.
    pub fn insert_weight_only(&mut self, id: &LayerId, weight: PackedMatrix) {
        self.weight_only.insert(id.clone(), weight);
    }

    /// Bytes that the layers occupy.
    pub fn size(&self) -> usize {
        let weight_only = self.weight_only.values().map(PackedMatrix::size);
        self.layers.values().map(PackedLinear::size).chain(weight_only).sum()
    }
}

impl Tap for PackedTap {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.steps = timesteps.iter().map(|&t| nearest_step(&self.timesteps, t)).collect();
        Ok(())
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        match self.layers.get(&call.layer.id) {
            Some(layer) => layer.forward(&call, &self.steps, &mut self.quantizer),
            None => call.compute(),
        }
    }

    fn weight_only(&mut self, call: WeightOnlyCall<'_>) -> Result<Array> {
        match self.weight_only.get(&call.layer.id) {
            Some(weight) => weight.multiply(call.input, call.bias),
            None => call.compute(),
        }
    }
}
