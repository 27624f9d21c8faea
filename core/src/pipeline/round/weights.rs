//! `weights/{block}.npz`: a block's integers and what was learned of its inputs. `weights/weight_only.npz`, in the same form:
//! those of layers whose input is not quantized.

use std::path::Path;

use super::BlockMetrics;
use crate::artifacts::{Npz, RunFolder, write_npz};
use crate::pipeline::quantized::{ActivationPlan, QuantizedLayers};
use crate::quant::Grid;
use crate::{BlockSpec, Error, LayerId, LearnedInput, Result, RoundedLayer};

/// Writes layers, such as a block's.
pub(in crate::pipeline) fn write_layers<'a>(
    path: &Path,
    layers: impl IntoIterator<Item = (&'a LayerId, &'a RoundedLayer)>,
) -> Result<()> {
    write_npz(path, |npz| {
        for (id, rounded) in layers {
            let layout = rounded.grid.layout(rounded.shape)?;
            let name = |field: &str| format!("{}__{field}", id.array_prefix());
            let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
            npz.add(&name("weight_int"), &rounded.shape, &rounded.weight_int)?;
            npz.add(&name("scale"), &groups, &rounded.scale)?;
            if !rounded.grid.symmetric {
                npz.add(&name("zero_point"), &groups, &rounded.zero_point)?;
            }
            let Some(learned) = &rounded.learned else { continue };
            let ([outputs, inputs], steps) = (rounded.shape, learned.scale.len());
            npz.add(&name("a_scale"), &[steps], &learned.scale)?;
            for (field, values, shape) in [
                ("a_shift", &learned.shift, vec![steps, inputs]),
                ("multiplier", &learned.multiplier, vec![inputs]),
                ("bias", &learned.bias, vec![steps, outputs]),
            ] {
                if !values.is_empty() {
                    npz.add(&name(field), &shape, values)?;
                }
            }
        }
        Ok(())
    })
}

/// The layers of finished blocks.
pub(in crate::pipeline) fn load_blocks<'a>(
    run: &RunFolder,
    plan: &ActivationPlan,
    blocks: impl Iterator<Item = (&'a BlockSpec, &'a BlockMetrics)>,
) -> Result<QuantizedLayers> {
    let mut layers = QuantizedLayers::new();
    visit_rounded(run, plan.timesteps.len(), blocks, &mut |id, rounded| {
        layers.insert(id.clone(), rounded.quantized(plan.input(id)?)?);
        Ok(())
    })?;
    Ok(layers)
}

/// The integers of finished blocks, in the order of the forward pass.
pub(in crate::pipeline) fn load_rounded<'a>(
    run: &RunFolder,
    plan: &ActivationPlan,
    blocks: impl Iterator<Item = (&'a BlockSpec, &'a BlockMetrics)>,
) -> Result<Vec<(LayerId, RoundedLayer)>> {
    let mut layers = Vec::new();
    visit_rounded(run, plan.timesteps.len(), blocks, &mut |id, rounded| {
        layers.push((id.clone(), rounded));
        Ok(())
    })?;
    Ok(layers)
}

/// Shows the integers of finished blocks, in the order of the forward pass, one layer at a time.
///
/// `steps` is how many timesteps the plan has.
pub(in crate::pipeline) fn visit_rounded<'a>(
    run: &RunFolder,
    steps: usize,
    blocks: impl Iterator<Item = (&'a BlockSpec, &'a BlockMetrics)>,
    visit: &mut dyn FnMut(&LayerId, RoundedLayer) -> Result<()>,
) -> Result<()> {
    for (block, metrics) in blocks {
        let path = run.block_weights(&block.id);
        let npz = Npz::open(&path)?;
        for layer in &block.layers {
            let Some(&grid) = metrics.layers.get(&layer.id) else { continue };
            let shape = [layer.out_features, layer.in_features];
            visit(&layer.id, read_layer(&npz, &path, &layer.id, shape, grid, steps)?)?;
        }
    }
    Ok(())
}

/// Reads a layer with inputs of so many timesteps.
pub(super) fn read_layer(
    npz: &Npz,
    path: &Path,
    id: &LayerId,
    shape @ [outputs, inputs]: [usize; 2],
    grid: Grid,
    steps: usize,
) -> Result<RoundedLayer> {
    let name = |field: &str| format!("{}__{field}", id.array_prefix());
    let layout = grid.layout(shape)?;
    let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
    let optional = |field: &str, shape: &[usize]| match npz.contains(&name(field)) {
        true => npz.vec(&name(field), shape),
        false => Ok(Vec::new()),
    };
    let learned = match npz.contains(&name("a_scale")) {
        true => Some(LearnedInput {
            scale: npz.vec(&name("a_scale"), &[steps])?,
            shift: optional("a_shift", &[steps, inputs])?,
            multiplier: optional("multiplier", &[inputs])?,
            bias: optional("bias", &[steps, outputs])?,
        }),
        false => None,
    };
    let zero_point = match grid.symmetric {
        true => vec![0.0; layout.groups],
        false => npz.vec(&name("zero_point"), &groups)?,
    };
    let (weight_int, scale) = (npz.vec(&name("weight_int"), &shape)?, npz.vec(&name("scale"), &groups)?);
    let rounded = RoundedLayer { grid, shape, weight_int, scale, zero_point, learned };
    rounded.check(id, shape, steps).map_err(|e| Error::malformed("block of weights", path, e))?;
    Ok(rounded)
}
