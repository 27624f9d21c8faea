//! The arrays that `mlx.nn.QuantizedLinear` loads: [`RoundedLayer::affine`] in the type of the model's files. Nothing is
//! rounded anew but step size and bias, to that type.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::files::write_tensors;
use super::{multiplier, replace_weight};
use crate::artifacts::write_json;
use crate::{Checkpoint, LayerId, Result, RoundedLayer, StoredTensor};

/// Writes `model.safetensors` and `config.json`, whose `quantization` says what mlx-lm's does. Returns the weights' path, how
/// many layers were packed, and the layers that could not be.
pub(super) fn write(
    mut checkpoint: Checkpoint,
    layers: &[(LayerId, RoundedLayer)],
    out: &Path,
) -> Result<(PathBuf, usize, Vec<LayerId>)> {
    let (mut quantization, mut packed, mut whole) = (Map::new(), 0, Vec::new());
    for (id, layer) in layers {
        let module = checkpoint.module(id)?.to_owned();
        let dtype = checkpoint.tensor(&format!("{module}.weight"))?.dtype;
        match affine(layer, dtype)? {
            Some(affine) => {
                for (part, stored) in affine.tensors {
                    checkpoint.tensors.insert(format!("{module}.{part}"), stored);
                }
                quantization.insert(
                    module,
                    json!({ "group_size": affine.group, "bits": affine.bits, "mode": "affine" }),
                );
                packed += 1;
            }
            None => {
                replace_weight(&mut checkpoint, id, layer)?;
                whole.push(id.clone());
            }
        }
    }
    let mut config = checkpoint.config;
    config.insert("quantization".into(), Value::Object(quantization));
    let weights = out.join("model.safetensors");
    write_tensors(&weights, &checkpoint.tensors, "mlx")?;
    write_json(&out.join("config.json"), &config)?;
    Ok((weights, packed, whole))
}

pub(in crate::pipeline) struct Affine {
    pub(in crate::pipeline) group: usize,
    pub(in crate::pipeline) bits: u8,
    pub(in crate::pipeline) tensors: [(&'static str, StoredTensor); 3],
}

/// `None` if MLX has no such grid, as it has none for columns with multipliers: they lie on no common grid once they are
/// divided by them.
pub(in crate::pipeline) fn affine(layer: &RoundedLayer, dtype: Dtype) -> Result<Option<Affine>> {
    if multiplier(layer).is_some() {
        return Ok(None);
    }
    let Some(crate::quant::Affine { group, bits, words, scales, biases }) = layer.affine(128)? else {
        return Ok(None);
    };
    let [rows, columns] = layer.shape;
    let floats = |values: &[f32]| StoredTensor::of_floats(values, &[rows, columns / group], dtype);
    let shape = vec![rows, columns * usize::from(bits) / 32];
    let weight = StoredTensor { dtype: Dtype::U32, shape, bytes: words };
    let tensors = [("weight", weight), ("scales", floats(&scales)?), ("biases", floats(&biases)?)];
    Ok(Some(Affine { group, bits, tensors }))
}

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::*;
    use crate::quant::{Clipping, Grid, nearest};

    #[test]
    fn columns_with_multipliers_stay_whole() {
        let grid = Grid::channel(4).unwrap();
        let weight = Array::from_slice(&[0.1_f32; 64], &[1, 64]);
        let mut layer = nearest(&weight, &grid, Clipping::Absmax).unwrap();
        let mut learned =
            crate::LearnedInput { scale: vec![1.0], shift: vec![], multiplier: vec![1.0; 64], bias: vec![] };
        layer.learned = Some(learned.clone());
        assert!(affine(&layer, Dtype::F16).unwrap().is_some());
        learned.multiplier[3] = 2.0;
        layer.learned = Some(learned);
        assert!(affine(&layer, Dtype::F16).unwrap().is_none());
    }
}
