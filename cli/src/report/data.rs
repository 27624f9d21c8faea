//! What the page's script draws, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use taq_core::pipeline::Sensitivities;
use taq_core::{LOSS_STRIDE, LayerId, Result};

use super::inputs::Inputs;
use super::layers::Axes;
use super::maps::{self, Map};
use super::numbers::short;
use super::sensitivities;
use crate::results::integers;
use crate::results::sources::Sources;

/// How often each integer of a grid occurs.
#[derive(Debug, Serialize)]
pub(super) struct Integers {
    lowest: i8,
    shares: Vec<f64>,
}

/// How one block was rounded.
#[derive(Debug, Serialize)]
pub(super) struct Block {
    name: String,
    /// Mean squared error on held-out rows; none of imported weights.
    nearest: Option<f64>,
    chosen: Option<f64>,
    /// Every [`LOSS_STRIDE`] iterations.
    losses: Vec<f64>,
}

/// The grid of one layer's input at one timestep.
#[derive(Debug, Serialize)]
pub(super) struct InputGrid {
    bits: u8,
    absmax: f64,
    step: f64,
    shift: bool,
}

/// One run.
#[derive(Debug, Default, Serialize)]
pub(super) struct RunData {
    layers: Vec<String>,
    /// Step and σ, from noise to image.
    steps: Vec<(usize, f64)>,
    maps: Vec<Map>,
    inputs: Option<Inputs>,
    /// Layer, timestep.
    grids: Option<Vec<Vec<Option<InputGrid>>>>,
    weight_bits: Vec<Option<u8>>,
    blocks: Vec<Block>,
    loss_stride: usize,
    /// Each layer's block and integers.
    block_of: Vec<Option<usize>>,
    integers: Vec<Option<Integers>>,
    sensitivity: Option<Map>,
    /// The layer to begin with.
    first: usize,
}

impl RunData {
    pub(super) fn read(
        sources: &Sources,
        axes: Axes,
        inputs: Option<Inputs>,
        measured: Option<&Sensitivities>,
    ) -> Result<Self> {
        let (statistics, plan) = (sources.statistics().ok(), sources.plan().ok());
        let mut maps = statistics.map(maps::of_statistics).transpose()?.unwrap_or_default();
        maps.extend(plan.map(|plan| maps::of_plan(plan, &axes)));
        let mut data = Self {
            inputs,
            maps,
            grids: plan.map(|plan| {
                let grid = |id: &LayerId, step: &usize| {
                    let grid = plan.per_timestep.get(step)?.get(id)?;
                    let (absmax, step) = (short(grid.absmax.into()), short(grid.scale.into()));
                    Some(InputGrid { bits: grid.bits, absmax, step, shift: grid.shift })
                };
                let row = |id| axes.steps.iter().map(|(step, _)| grid(id, step)).collect();
                axes.ids.iter().map(row).collect()
            }),
            weight_bits: axes.ids.iter().map(|id| plan?.weight_bits.get(id).copied()).collect(),
            loss_stride: LOSS_STRIDE,
            sensitivity: measured.and_then(|m| sensitivities::map(m, &axes)),
            ..Self::default()
        };
        if let Some(statistics) = statistics {
            let most = statistics.most_variable(&axes.ids).into_iter().next();
            data.first = most.and_then(|id| axes.ids.iter().position(|i| *i == id)).unwrap_or(0);
        }
        let mut rounded: BTreeMap<LayerId, (usize, Integers)> = BTreeMap::new();
        for (index, block) in sources.weights().into_iter().flat_map(|w| &w.block_metrics).enumerate() {
            data.blocks.push(Block {
                name: block.block_name.to_string(),
                nearest: block.nearest_loss.map(|loss| short(loss.into())),
                chosen: block.final_loss.map(|loss| short(loss.into())),
                losses: block.loss_history_stride100.iter().map(|&l| short(l.into())).collect(),
            });
            for found in integers::of_block(&sources.run, block)? {
                let shares = found.shares.into_iter().map(short).collect();
                rounded.insert(found.layer, (index, Integers { lowest: found.lowest, shares }));
            }
        }
        for id in &axes.ids {
            let (block, integers) = rounded.remove(id).unzip();
            data.block_of.push(block);
            data.integers.push(integers);
        }
        data.layers = axes.ids.iter().map(|id| id.as_str().to_owned()).collect();
        data.steps = axes.steps.iter().map(|&(step, sigma)| (step, short(sigma))).collect();
        Ok(data)
    }
}
