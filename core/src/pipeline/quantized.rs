//! The quantized model as a tap: weights on their grids, inputs fake-quantized by the plan.

use std::collections::{BTreeMap, HashMap};

use mlx_rs::{Array, ops};

use crate::artifacts::{Npz, RunFolder};
use crate::plan::QuantConfig;
use crate::quant::{InputGrids, QDrop, QuantizedLayer, Smoothing};
use crate::{Error, LayerId, LinearCall, ModelSpec, Result, Tap, WeightOnlyCall};

/// The activation side of a plan, ready for use.
#[derive(Debug, Default)]
pub struct ActivationPlan {
    /// The planned timesteps (1000 σ); positions in this list are what [`InputGrids`] calls steps.
    pub timesteps: Vec<f32>,
    /// Every layer's grids.
    pub inputs: HashMap<LayerId, InputGrids>,
    /// The factors of layers that are smoothed; they are the multipliers of those grids too.
    pub smoothed: HashMap<LayerId, Smoothing>,
}

impl ActivationPlan {
    /// Reads the shifts that the plan refers to.
    pub fn load(run: &RunFolder, spec: &ModelSpec, config: &QuantConfig) -> Result<Self> {
        let timesteps = config.sigma_map.values().map(|sigma| 1000.0 * sigma).collect();
        let mut shifts: BTreeMap<usize, Npz> = BTreeMap::new();
        let (mut inputs, mut smoothed) = (HashMap::new(), HashMap::new());
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
            let mut grids = InputGrids::new(bits, &scale).map_err(|e| {
                Error::malformed("quantization plan", run.quant_config(), format!("{}: {e}", layer.id))
            })?;
            grids.shift = if shifted { Some(ops::stack(&shift, 0)?) } else { None };
            if let Some(factors) = smoothing(config, &layer.id, layer.in_features, run)? {
                grids.multiplier = Some(Array::from_slice(factors.factors(), &[layer.in_features as i32]));
                smoothed.insert(layer.id.clone(), factors);
            }
            inputs.insert(layer.id.clone(), grids);
        }
        Ok(Self { timesteps, inputs, smoothed })
    }

    /// The layer's weight as it is to be rounded for the grids of its input: times the factors, if it is smoothed.
    pub fn weight(&self, id: &LayerId, weight: Array) -> Result<Array> {
        self.smoothed.get(id).map_or(Ok(weight.clone()), |s| s.weight(&weight))
    }

    /// The same, with a step size for every token of an input where `dynamic`.
    pub fn with_dynamic(mut self, dynamic: bool) -> Self {
        self.inputs.values_mut().for_each(|grids| grids.dynamic = dynamic);
        self
    }

    /// The planned step nearest to a timestep.
    pub fn step(&self, timestep: f32) -> usize {
        nearest_step(&self.timesteps, timestep)
    }

    /// The plan's grids of a layer's input.
    ///
    /// # Errors
    /// [`Error::Settings`] if the plan does not know the layer.
    pub fn input(&self, id: &LayerId) -> Result<&InputGrids> {
        self.inputs
            .get(id)
            .ok_or_else(|| Error::settings("quantization plan", format!("it has no layer {id}")))
    }
}

/// The factors of a layer that the plan smooths.
fn smoothing(
    config: &QuantConfig,
    id: &LayerId,
    inputs: usize,
    run: &RunFolder,
) -> Result<Option<Smoothing>> {
    let Some(planned) = config.smoothquant.get(id) else { return Ok(None) };
    let wrong = |reason: String| Error::malformed("quantization plan", run.quant_config(), reason);
    if planned.scale.len() != inputs {
        let found = planned.scale.len();
        return Err(wrong(format!("smoothquant: {found} factors for the {inputs} channels of {id}")));
    }
    Smoothing::new(planned.scale.clone()).map(Some).map_err(|e| wrong(format!("{id}: {e}")))
}

/// Position of the timestep nearest to this one.
pub(super) fn nearest_step(timesteps: &[f32], timestep: f32) -> usize {
    let distance = |t: &f32| (t - timestep).abs();
    let nearest = timesteps.iter().enumerate().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
    nearest.map_or(0, |(step, _)| step)
}

/// Quantized layers by id; layers that are not there compute in full precision.
pub type QuantizedLayers = HashMap<LayerId, QuantizedLayer>;

/// Runs the model with quantized layers.
pub struct QuantizedTap<'a> {
    plan: &'a ActivationPlan,
    layers: &'a QuantizedLayers,
    weight_only: Option<&'a HashMap<LayerId, Array>>,
    drop: Option<QDrop>,
    steps: Vec<usize>,
}

impl<'a> QuantizedTap<'a> {
    /// A tap with these layers, at the timesteps of this plan.
    pub fn new(plan: &'a ActivationPlan, layers: &'a QuantizedLayers) -> Self {
        Self { plan, layers, weight_only: None, drop: None, steps: Vec::new() }
    }

    /// The same, with these weights of layers whose input is not quantized.
    pub fn with_weight_only(self, weights: &'a HashMap<LayerId, Array>) -> Self {
        Self { weight_only: Some(weights), ..self }
    }

    /// The same, leaving a random share of every input in full precision.
    pub fn with_drop(self, drop: Option<QDrop>) -> Self {
        Self { drop, ..self }
    }
}

impl Tap for QuantizedTap<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.steps = timesteps.iter().map(|&t| self.plan.step(t)).collect();
        Ok(())
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        match self.layers.get(&call.layer.id) {
            Some(layer) => {
                // Every layer its own pattern: layers of one shape must not leave out the same elements.
                let layer_number = self.drop.map(|_| name_hash(&call.layer.id));
                let drop = self.drop.zip(layer_number).map(|(d, n)| QDrop { seed: d.seed ^ n, ..d });
                layer.forward(&call, &self.steps, drop)
            }
            None => call.compute(),
        }
    }

    fn weight_only(&mut self, call: WeightOnlyCall<'_>) -> Result<Array> {
        match self.weight_only.and_then(|weights| weights.get(&call.layer.id)) {
            Some(weight) => call.compute_with(call.input, weight),
            None => call.compute(),
        }
    }
}

/// FNV-1a.
fn name_hash(id: &LayerId) -> u32 {
    id.as_str().bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
