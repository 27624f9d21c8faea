//! MLX's affine quantization, as [`crate::pipeline::ExportFormat::Mlx`] writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::grids::Affine;
use super::tensors::Tensors;
use super::{Imported, refusal};
use crate::artifacts::read_json;
use crate::pipeline::Session;
use crate::quant::GROUPS;
use crate::quant::unpack;
use crate::{Checkpoint, Error, Result, RoundedLayer};

/// The file with the tensors.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The file that says how they are packed.
pub(super) const CONFIG: &str = "config.json";

/// How one module is packed, as mlx-lm writes it.
#[derive(Deserialize)]
struct Packing {
    group_size: usize,
    bits: u8,
    #[serde(default = "affine")]
    mode: String,
}

/// What mlx-lm takes where no mode is given.
fn affine() -> String {
    "affine".into()
}

/// Reads the folder.
pub(super) fn read(session: &Session, folder: &Path) -> Result<Imported> {
    let path = folder.join(CONFIG);
    let mut config: Map<String, Value> = read_json(&path, "configuration of the transformer")?;
    let Some(Value::Object(packings)) = config.remove("quantization") else {
        return Err(refusal(format!("`{}` has no `quantization`, so nothing is packed", path.display())));
    };
    let weights = Tensors::read(&folder.join(WEIGHTS))?;
    let checkpoint = session.model.checkpoint()?;
    let (mut layers, mut known) = (Vec::new(), BTreeSet::new());
    for (id, shape) in session.model.spec().weights() {
        let module = checkpoint.module(id)?;
        let Some(packing) = packings.get(module) else { continue };
        let malformed =
            |reason: String| Error::malformed("MLX quantization", &path, format!("`{module}`: {reason}"));
        let packing = Packing::deserialize(packing).map_err(|e| malformed(e.to_string()))?;
        let rounded = rounded(&weights, shape, module, &packing).map_err(|e| malformed(e.to_string()))?;
        layers.push((id.clone(), rounded));
        known.extend(["weight", "scales", "biases"].map(|part| format!("{module}.{part}")));
    }
    if layers.len() != packings.len() {
        let modules: BTreeSet<&String> = checkpoint.modules.values().collect();
        let stranger = packings.keys().find(|module| !modules.contains(module));
        let stranger = stranger.map_or_else(String::new, |name| format!(": it packs `{name}`"));
        return Err(refusal(format!("`{}` is not of this model{stranger}", folder.display())));
    }
    let names = weights.names().filter(|name| !known.contains(*name));
    if let Some(stranger) = names.filter(|name| !checkpoint.tensors.contains_key(*name)).min() {
        return Err(refusal(format!(
            "`{}` is not of this model: it has a tensor `{stranger}`",
            folder.display()
        )));
    }
    same(&checkpoint, &weights, &known)?;
    Ok(Imported { layers, origin: None })
}

/// Whether all that is not packed is the model's own.
fn same(checkpoint: &Checkpoint, weights: &Tensors, packed: &BTreeSet<String>) -> Result<()> {
    let layers: BTreeMap<&str, _> =
        checkpoint.modules.iter().map(|(id, module)| (module.as_str(), id)).collect();
    for (name, own) in checkpoint.tensors.iter().filter(|(name, _)| !packed.contains(*name)) {
        let found = weights.get(name)?;
        if own.to_dtype(found.dtype).is_ok_and(|own| own == *found) {
            continue;
        }
        let what = match name.rsplit_once('.').and_then(|(module, part)| Some((layers.get(module)?, part))) {
            Some((id, "weight")) => format!(
                "layer {id}: its weights are not packed, and are not the model's: the export holds them dequantized. A packed \
                 folder (taq export --format packed) keeps the integers of every layer"
            ),
            Some((id, _)) => format!(
                "layer {id}: its bias is not the model's: learned biases were folded in, and cannot be told apart. A packed \
                 folder (taq export --format packed) keeps them"
            ),
            None => format!("tensor `{name}` is not the model's: this is no export of it"),
        };
        return Err(Error::Unsupported { what: format!("import of {what}") });
    }
    Ok(())
}

fn rounded(
    weights: &Tensors,
    [rows, columns]: [usize; 2],
    module: &str,
    packing: &Packing,
) -> Result<RoundedLayer> {
    let &Packing { group_size: group, bits, ref mode } = packing;
    if mode != "affine" {
        return Err(refusal(format!("mode `{mode}`, expected affine")));
    }
    if !GROUPS.contains(&group) || !columns.is_multiple_of(group) || !matches!(bits, 2..=6 | 8) {
        return Err(refusal(format!(
            "{bits} bits in groups of {group} are no packing of rows of {columns} weights"
        )));
    }
    let words = columns * usize::from(bits) / 32;
    let bytes = weights.bytes(&format!("{module}.weight"), Dtype::U32, &[rows, words])?;
    let mask = u8::MAX >> (8 - bits);
    let integers: Vec<u8> =
        unpack(bytes, bits, rows * columns)?.into_iter().map(|q| q as u8 & mask).collect();
    // What fits into 7 bits, which MLX has not, was 7 bits: on the wider grid the zero point would lose its last bits.
    let bits = if bits == 8 && integers.iter().all(|q| *q < 128) { 7 } else { bits };
    let groups = [rows, columns / group];
    let steps = weights.floats(&format!("{module}.scales"), &groups)?;
    let minima = weights.floats(&format!("{module}.biases"), &groups)?;
    if !steps.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(refusal("a step size is not a number above 0, which taq's grids cannot have"));
    }
    // An export packs a row with one step size in the largest groups that fit; others must stay as they are.
    let by_row = GROUPS.into_iter().find(|g| columns.is_multiple_of(*g)) == Some(group);
    Affine { bits, shape: [rows, columns], group, integers, steps, minima }.rounded(by_row)
}

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::*;
    use crate::StoredTensor;
    use crate::pipeline::export::mlx::{self as writer, affine};
    use crate::quant::{Clipping, Granularity, Grid, nearest};

    #[test]
    fn what_export_packs_comes_back_and_packs_to_the_same_bytes() {
        let (rows, columns) = (6, 256);
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * i % 97) as f32 - 40.0) / 300.0).collect();
        let weight = Array::from_slice(&values, &[rows, columns]);
        let shape = [rows as usize, columns as usize];
        for bits in 2..=8 {
            for granularity in [Granularity::Channel, Granularity::Tensor, Granularity::Group(64)] {
                for symmetric in [false, true] {
                    for dtype in [Dtype::F32, Dtype::F16] {
                        let grid = Grid::new(bits, granularity, symmetric).unwrap();
                        let layer = nearest(&weight, &grid, Clipping::Mse).unwrap();
                        let writer::Affine { group, bits, tensors } = affine(&layer, dtype).unwrap().unwrap();
                        let tensors: BTreeMap<String, StoredTensor> =
                            tensors.into_iter().map(|(part, t)| (format!("m.{part}"), t)).collect();
                        let file = Tensors::of(tensors.clone());
                        let packing = Packing { group_size: group, bits, mode: "affine".into() };
                        let back = rounded(&file, shape, "m", &packing).unwrap();
                        if dtype == Dtype::F32 {
                            for (a, b) in back.values().iter().zip(layer.values()) {
                                assert!((a - b).abs() < 1e-6, "{grid:?}: {a} {b}");
                            }
                        }
                        if bits == grid.bits {
                            assert_eq!(back.weight_int, layer.weight_int, "{grid:?}");
                        }
                        let again = affine(&back, dtype).unwrap().unwrap();
                        assert_eq!((again.group, again.bits), (group, bits));
                        for (part, tensor) in again.tensors {
                            assert!(tensors[&format!("m.{part}")] == tensor, "{grid:?}, {dtype:?}: {part}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn other_packings_are_refused() {
        let shape = [1, 64];
        let floats = |value: f32| StoredTensor::of_floats(&[value], &[1, 1], Dtype::F16).unwrap();
        let file = |step: f32| {
            let weight = StoredTensor { dtype: Dtype::U32, shape: vec![1, 8], bytes: vec![0; 32] };
            let tensors = [("m.weight", weight), ("m.scales", floats(step)), ("m.biases", floats(0.0))];
            Tensors::of(tensors.into_iter().map(|(name, t)| (name.to_owned(), t)).collect())
        };
        let reason = |step, group_size, bits, mode: &str| {
            let packing = Packing { group_size, bits, mode: mode.into() };
            rounded(&file(step), shape, "m", &packing).map(|_| ()).unwrap_err().to_string()
        };
        assert!(reason(1.0, 64, 4, "mxfp4").contains("mode `mxfp4`"));
        assert!(reason(1.0, 128, 4, "affine").contains("4 bits in groups of 128"));
        assert!(reason(1.0, 64, 7, "affine").contains("7 bits"));
        assert!(reason(0.0, 64, 4, "affine").contains("step size"));
        assert!(reason(1.0, 64, 8, "affine").contains("expected U32 [1, 16]"));
        let packing = Packing { group_size: 64, bits: 4, mode: "affine".into() };
        assert!(rounded(&file(1.0), shape, "m", &packing).is_ok());
    }
}
