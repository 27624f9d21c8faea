//! Weights of layers whose input is not quantized: rounded to nearest, each group of inputs on a grid of its own.
//!
//! A third of SD3's weights are modulation: a row for each image, multiplied once a step. Their integers save memory, not
//! time, so activations stay as they are (W4A16, as Nunchaku keeps these layers, arXiv 2411.05007). They are not learned:
//! blocks are reconstructed with the full-precision modulation.

use std::collections::BTreeMap;

use super::WeightsConfig;
use super::weights::{read_layer, write_layers};
use crate::artifacts::{Npz, RunFolder};
use crate::pipeline::Session;
use crate::quant::{Clipping, Granularity, Grid, nearest};
use crate::{LayerId, ModelSpec, Result, RoundedLayer};

/// Inputs that share a step size, where they can be divided so.
const GROUP: usize = 64;

/// Rounds and writes the weights, and says on which grids.
pub(super) fn round_weight_only(session: &Session, bits: u8) -> Result<BTreeMap<LayerId, Grid>> {
    let mut layers = Vec::new();
    for layer in &session.model.spec().weight_only {
        session.cx.check()?;
        let whole = layer.in_features.is_multiple_of(GROUP);
        let granularity = if whole { Granularity::Group(GROUP) } else { Granularity::Channel };
        let grid = Grid::new(bits, granularity, false)?;
        layers.push((&layer.id, nearest(&session.model.weight(&layer.id)?, &grid, Clipping::Mse)?));
    }
    write_layers(&session.run.weight_only_weights(), layers.iter().map(|(id, rounded)| (*id, rounded)))?;
    Ok(layers.iter().map(|(id, rounded)| ((*id).clone(), rounded.grid)).collect())
}

/// Shows them, in the order of the forward pass.
pub(in crate::pipeline) fn visit_weight_only(
    run: &RunFolder,
    spec: &ModelSpec,
    config: &WeightsConfig,
    visit: &mut dyn FnMut(&LayerId, RoundedLayer) -> Result<()>,
) -> Result<()> {
    if config.weight_only.is_empty() {
        return Ok(());
    }
    let path = run.weight_only_weights();
    let npz = Npz::open(&path)?;
    for layer in &spec.weight_only {
        let Some(&grid) = config.weight_only.get(&layer.id) else { continue };
        let shape = [layer.out_features, layer.in_features];
        visit(&layer.id, read_layer(&npz, &path, &layer.id, shape, grid, 0)?)?;
    }
    Ok(())
}
