//! The quantized model as a tap: weights on their grids, inputs fake-quantized by the plan.

use std::collections::{BTreeMap, HashMap};

use mlx_rs::{Array, ops};

use crate::artifacts::{Npz, RunFolder};
use crate::plan::QuantConfig;
use crate::quant::fake_quantize;
use crate::{Error, LayerId, LinearCall, ModelSpec, Result, Tap};

/// Grids of one layer's input, by position in [`ActivationPlan::timesteps`].
struct LayerGrids {
    scale: Vec<f32>,
    bits: Vec<u8>,
    /// `[steps, in_features]`, if any step has a shift.
    shift: Option<Array>,
}

/// The activation side of a plan, ready for use.
pub struct ActivationPlan {
    timesteps: Vec<f32>,
    layers: HashMap<LayerId, LayerGrids>,
}

impl ActivationPlan {
    /// Reads the shifts that the plan refers to.
    pub fn load(run: &RunFolder, spec: &ModelSpec, config: &QuantConfig) -> Result<Self> {
        let timesteps = config.sigma_map.values().map(|sigma| 1000.0 * sigma).collect();
        let mut shifts: BTreeMap<usize, Npz> = BTreeMap::new();
        let mut layers = HashMap::new();
        for layer in spec.layers() {
            let (mut scale, mut bits, mut shift) = (Vec::new(), Vec::new(), Vec::new());
            let mut shifted = false;
            for (&step, grids) in &config.per_timestep {
                let grid = grids.get(&layer.id).ok_or_else(|| {
                    let reason = format!("step {step} has no layer {}", layer.id);
                    Error::malformed("quantization plan", run.quant_config(), reason)
                })?;
                scale.push(grid.scale);
                bits.push(grid.bits);
                let values = if grid.shift {
                    shifted = true;
                    if let std::collections::btree_map::Entry::Vacant(slot) = shifts.entry(step) {
                        slot.insert(Npz::open(&run.step_stats(step))?);
                    }
                    shifts[&step].array(&format!("{}__shift", layer.id.array_prefix()))?
                } else {
                    ops::zeros::<f32>(&[layer.in_features as i32])?
                };
                shift.push(values);
            }
            let shift = if shifted { Some(ops::stack(&shift, 0)?) } else { None };
            layers.insert(layer.id.clone(), LayerGrids { scale, bits, shift });
        }
        Ok(Self { timesteps, layers })
    }

    /// The planned step nearest to a timestep.
    fn step(&self, timestep: f32) -> usize {
        let distance = |t: &f32| (t - timestep).abs();
        let nearest =
            self.timesteps.iter().enumerate().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
        nearest.map_or(0, |(step, _)| step)
    }

    /// The layer's input on its grids; `steps` has the planned step of each row.
    fn quantize(&self, call: &LinearCall<'_>, steps: &[usize]) -> Result<Array> {
        let Some(grids) = self.layers.get(&call.layer.id) else { return Ok(call.input.clone()) };
        let scale: Vec<f32> = steps.iter().map(|&s| grids.scale[s]).collect();
        let bits: Vec<u8> = steps.iter().map(|&s| grids.bits[s]).collect();
        let shift = match &grids.shift {
            Some(shift) => {
                let rows: Vec<i32> = steps.iter().map(|&s| s as i32).collect();
                Some(shift.take_axis(Array::from_slice(&rows, &[rows.len() as i32]), 0)?)
            }
            None => None,
        };
        fake_quantize(call.input, &scale, &bits, shift.as_ref())
    }
}

/// Weights by layer, dequantized; layers that are not there keep full precision.
pub type QuantizedWeights = HashMap<LayerId, Array>;

/// Runs the model with quantized weights and inputs.
pub struct QuantizedTap<'a> {
    plan: &'a ActivationPlan,
    weights: &'a QuantizedWeights,
    steps: Vec<usize>,
}

impl<'a> QuantizedTap<'a> {
    /// A tap with these weights and this plan.
    pub fn new(plan: &'a ActivationPlan, weights: &'a QuantizedWeights) -> Self {
        Self { plan, weights, steps: Vec::new() }
    }
}

impl Tap for QuantizedTap<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.steps = timesteps.iter().map(|&t| self.plan.step(t)).collect();
        Ok(())
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        match self.weights.get(&call.layer.id) {
            Some(weight) => call.compute_with(&self.plan.quantize(&call, &self.steps)?, weight),
            None => call.compute(),
        }
    }
}
