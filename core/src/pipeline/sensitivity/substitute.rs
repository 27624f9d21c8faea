//! One layer's weight or input on a grid, and nothing else of the model.

use std::collections::BTreeMap;

use mlx_rs::Array;

use crate::pipeline::Session;
use crate::pipeline::decide::{fill_in, step_indexes};
use crate::pipeline::quantized::ActivationPlan;
use crate::quant::{Clipping, Grid, GridParams, InputGrids, nearest_with, to_matrix};
use crate::stats::StatisticsIndex;
use crate::{LayerId, LayerPlan, LayerSpec, LinearCall, Model, PolicyPlan, Result, Tap};

/// The widths that are tried, with what is needed to quantize to them.
pub(super) struct Widths {
    weights: Vec<u8>,
    /// The grids of all inputs at each width, as a plan would have them: up to the largest magnitude seen at the timestep,
    /// post-GELU inputs after their shift.
    inputs: Vec<(u8, ActivationPlan)>,
    /// Grids of weights, which take long to find.
    fitted: BTreeMap<(LayerId, u8), GridParams>,
}

/// A quantized weight or input.
pub(super) struct Substitute<'a> {
    /// Whether it is a weight.
    pub weight: bool,
    /// Its bits.
    pub bits: u8,
    with: With<'a>,
}

enum With<'a> {
    /// `[out_features, in_features]`.
    Weight(Array),
    Input(&'a ActivationPlan, &'a InputGrids),
}

impl Widths {
    /// Makes the grids of inputs from the run's statistics.
    pub fn new(session: &Session, index: &StatisticsIndex, weights: Vec<u8>, inputs: &[u8]) -> Result<Self> {
        let spec = session.model.spec();
        let steps = step_indexes(session, index, "sensitivity")?;
        let plan = |&bits: &u8| {
            let layer = |l: &LayerSpec| LayerPlan {
                shift: l.post_gelu,
                ..LayerPlan::uniform(l.id.clone(), bits, bits, steps.len())
            };
            let plan = PolicyPlan::new(spec.layers().map(layer).collect());
            let config = fill_in(spec, "sensitivity", index, &steps, &plan)?;
            Ok((bits, ActivationPlan::load(&session.run, spec, &config)?))
        };
        Ok(Self::with(weights, inputs.iter().map(plan).collect::<Result<_>>()?))
    }

    /// With these grids of inputs.
    pub fn with(weights: Vec<u8>, inputs: Vec<(u8, ActivationPlan)>) -> Self {
        Self { weights, inputs, fitted: BTreeMap::new() }
    }

    /// How many there are for each layer.
    pub fn len(&self) -> usize {
        self.weights.len() + self.inputs.len()
    }

    /// A layer's substitutes: of its weight (nearest points of a grid per output channel, clipped where the squared error
    /// is smallest), then of its input.
    pub fn of(&mut self, model: &dyn Model, layer: &LayerId) -> Result<Vec<Substitute<'_>>> {
        let mut all = Vec::with_capacity(self.len());
        let weight = model.weight(layer)?;
        for &bits in &self.weights {
            let grid = Grid::channel(bits)?;
            let key = (layer.clone(), bits);
            let params = match self.fitted.get(&key) {
                Some(params) => params,
                None => {
                    let (values, shape) = to_matrix(&format!("weight of {layer}"), &weight)?;
                    let params = GridParams::fit(&values, shape, &grid, Clipping::Mse)?;
                    self.fitted.entry(key).or_insert(params)
                }
            };
            let rounded = nearest_with(&weight, &grid, params.clone())?.dequantize()?;
            all.push(Substitute { weight: true, bits, with: With::Weight(rounded) });
        }
        for (bits, plan) in &self.inputs {
            let with = With::Input(plan, plan.input(layer)?);
            all.push(Substitute { weight: false, bits: *bits, with });
        }
        Ok(all)
    }
}

impl Substitute<'_> {
    /// What the layer puts out with it, `[batch, tokens, out_features]`.
    fn output(&self, call: &LinearCall<'_>, timesteps: &[f32]) -> Result<Array> {
        match &self.with {
            With::Weight(weight) => call.compute_with(call.input, weight),
            With::Input(plan, grids) => {
                call.compute_with(&quantized(plan, grids, call.input, timesteps)?, call.weight)
            }
        }
    }

    /// By how much the output of a layer with this input and weight changes, `[batch, tokens, out_features]`.
    pub fn error(&self, input: &Array, weight: &Array, timesteps: &[f32]) -> Result<Array> {
        Ok(match &self.with {
            With::Weight(rounded) => mlx_host::linear(input, &rounded.subtract(weight)?, None)?,
            With::Input(plan, grids) => {
                let error = quantized(plan, grids, input, timesteps)?.subtract(input)?;
                mlx_host::linear(&error, weight, None)?
            }
        })
    }
}

/// For people: `the input of mm0.img.mlp.fc1 at 4 bits`.
pub(super) fn describe(layer: &LayerId, weight: bool, bits: u8) -> String {
    format!("the {} of {layer} at {bits} bits", if weight { "weight" } else { "input" })
}

fn quantized(plan: &ActivationPlan, grids: &InputGrids, input: &Array, timesteps: &[f32]) -> Result<Array> {
    let steps: Vec<usize> = timesteps.iter().map(|&t| plan.step(t)).collect();
    grids.quantize(input, &steps, None)
}

/// Runs the model with one substitute.
pub(super) struct SubstituteTap<'a> {
    layer: &'a LayerId,
    substitute: &'a Substitute<'a>,
    timesteps: Vec<f32>,
}

impl<'a> SubstituteTap<'a> {
    /// A tap with this in the place of the layer's own.
    pub fn new(layer: &'a LayerId, substitute: &'a Substitute<'a>) -> Self {
        Self { layer, substitute, timesteps: Vec::new() }
    }
}

impl Tap for SubstituteTap<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.timesteps = timesteps.to_vec();
        Ok(())
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if call.layer.id == *self.layer {
            return self.substitute.output(&call, &self.timesteps);
        }
        call.compute()
    }
}
