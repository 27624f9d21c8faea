//! `weights/{block}.npz`: a block's integers and what was learned of its inputs.

use std::path::Path;

use super::BlockMetrics;
use crate::artifacts::{Npz, RunFolder, write_npz};
use crate::pipeline::quantized::{ActivationPlan, QuantizedLayers};
use crate::{BlockSpec, Error, LayerId, LearnedInput, Result, RoundedLayer};

/// Writes a block's layers.
pub(in crate::pipeline) fn write_block<'a>(
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
    let rounded = load_rounded(run, plan, blocks)?;
    let layer = |(id, rounded): (LayerId, RoundedLayer)| {
        let layer = rounded.quantized(plan.input(&id)?)?;
        Ok((id, layer))
    };
    rounded.into_iter().map(layer).collect()
}

/// The integers of finished blocks, in the order of the forward pass.
pub(in crate::pipeline) fn load_rounded<'a>(
    run: &RunFolder,
    plan: &ActivationPlan,
    blocks: impl Iterator<Item = (&'a BlockSpec, &'a BlockMetrics)>,
) -> Result<Vec<(LayerId, RoundedLayer)>> {
    let mut layers = Vec::new();
    for (block, metrics) in blocks {
        let path = run.block_weights(&block.id);
        let npz = Npz::open(&path)?;
        for layer in &block.layers {
            let Some(&grid) = metrics.layers.get(&layer.id) else { continue };
            let name = |field: &str| format!("{}__{field}", layer.id.array_prefix());
            let shape = [layer.out_features, layer.in_features];
            let layout = grid.layout(shape)?;
            let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
            let steps = plan.timesteps.len();
            let optional = |field: &str, shape: &[usize]| match npz.contains(&name(field)) {
                true => npz.vec(&name(field), shape),
                false => Ok(Vec::new()),
            };
            let learned = match npz.contains(&name("a_scale")) {
                true => Some(LearnedInput {
                    scale: npz.vec(&name("a_scale"), &[steps])?,
                    shift: optional("a_shift", &[steps, layer.in_features])?,
                    multiplier: optional("multiplier", &[layer.in_features])?,
                    bias: optional("bias", &[steps, layer.out_features])?,
                }),
                false => None,
            };
            let rounded = RoundedLayer {
                grid,
                shape,
                weight_int: npz.vec(&name("weight_int"), &shape)?,
                scale: npz.vec(&name("scale"), &groups)?,
                zero_point: if grid.symmetric {
                    vec![0.0; layout.groups]
                } else {
                    npz.vec(&name("zero_point"), &groups)?
                },
                learned,
            };
            rounded.validate(layer, steps).map_err(|e| Error::malformed("block of weights", &path, e))?;
            layers.push((layer.id.clone(), rounded));
        }
    }
    Ok(layers)
}
