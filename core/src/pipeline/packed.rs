//! The quantized model as a tap whose layers keep their weights packed, for GPUs.

use std::collections::HashMap;

use mlx_rs::Array;

use super::quantized::{ActivationPlan, nearest_step};
use crate::quant::{InputQuantizer, PackedLinear};
use crate::{LayerId, LinearCall, Result, Tap};

/// Runs the model with layers whose weights stay packed. It never looks at the weights of the model's own layers, so that
/// those of a model that loads lazily are never read.
#[derive(Debug)]
pub struct PackedTap {
    timesteps: Vec<f32>,
    layers: HashMap<LayerId, PackedLinear>,
    quantizer: InputQuantizer,
    steps: Vec<usize>,
}

impl PackedTap {
    /// A tap without layers, at the timesteps of this plan. Layers that it has not compute in full precision.
    pub fn new(plan: &ActivationPlan) -> Self {
        Self {
            timesteps: plan.timesteps.clone(),
            layers: HashMap::new(),
            quantizer: InputQuantizer::default(),
            steps: Vec::new(),
        }
    }

    /// Replaces a layer.
    pub fn insert(&mut self, id: &LayerId, layer: PackedLinear) {
        self.layers.insert(id.clone(), layer);
    }

    /// Bytes that the layers occupy.
    pub fn size(&self) -> usize {
        self.layers.values().map(PackedLinear::size).sum()
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
}
