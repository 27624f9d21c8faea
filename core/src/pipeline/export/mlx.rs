//! MLX's affine quantization (`mlx.core.quantize`, mlx/backend/cpu/quantized.cpp): in groups along the rows,
//! `w = scale · q + bias` with q from 0 to 2^bits − 1, integers as one stream of bits, the lowest first, seen as u32.
//!
//! Ours is `w = s (q′ − z)` with q′ from −2^(bits − 1): the same integers with `q = q′ + 2^(bits − 1)`, `scale = s` and
//! `bias = −s (2^(bits − 1) + z)`, repeated for every group of a row. Nothing is rounded anew but step size and bias, to the
//! type of the model's files.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::files::write_tensors;
use super::{multiplier, replace_weight};
use crate::artifacts::write_json;
use crate::quant::pack;
use crate::{Checkpoint, LayerId, Result, RoundedLayer, StoredTensor};

/// Sizes of groups that MLX has kernels for, the cheapest first.
pub(in crate::pipeline) const GROUPS: [usize; 3] = [128, 64, 32];

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

/// `None` if MLX has no such grid: columns that are not a multiple of a group, groups of another size, or columns with
/// multipliers, which lie on no common grid once they are divided by them.
pub(in crate::pipeline) fn affine(layer: &RoundedLayer, dtype: Dtype) -> Result<Option<Affine>> {
    let [rows, columns] = layer.shape;
    // The weights that share a step size; those of a whole tensor share it by rows too.
    let shared = layer.grid.layout(layer.shape)?.group_len.min(columns);
    let group = GROUPS.into_iter().find(|&g| columns.is_multiple_of(g) && shared.is_multiple_of(g));
    let (Some(group), None) = (group, multiplier(layer)) else { return Ok(None) };
    // MLX has no integers of 7 bits; those fit into 8.
    let bits = if layer.grid.bits == 7 { 8 } else { layer.grid.bits };
    let offset = i16::from(layer.grid.qmin());
    let words = columns * usize::from(bits) / 32;
    // The pattern of bits of q is that of q less 2^bits where it does not fit as a signed integer.
    let pattern = |&q: &i8| ((i16::from(q) - offset) << (16 - bits) >> (16 - bits)) as i8;
    let integers: Vec<i8> = layer.weight_int.iter().map(pattern).collect();
    let per_row = columns / group;
    let of_group = |g: usize| {
        // Where the group begins tells which step size it has.
        let at = (g / per_row * columns + g % per_row * group) * layer.scale.len() / (rows * columns);
        (layer.scale[at], layer.zero_point[at])
    };
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for g in 0..rows * per_row {
        let (scale, zero) = of_group(g);
        scales.push(scale);
        biases.push(scale * (f32::from(offset) - zero));
    }
    let weight = StoredTensor { dtype: Dtype::U32, shape: vec![rows, words], bytes: pack(&integers, bits)? };
    Ok(Some(Affine {
        group,
        bits,
        tensors: [
            ("weight", weight),
            ("scales", StoredTensor::of_floats(&scales, &[rows, per_row], dtype)?),
            ("biases", StoredTensor::of_floats(&biases, &[rows, per_row], dtype)?),
        ],
    }))
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Array, ops};

    use super::*;
    use crate::quant::{Clipping, Granularity, Grid, nearest};

    /// MLX's own dequantization is the reference.
    #[test]
    fn mlx_reads_the_weights_that_we_mean() {
        let [rows, columns] = [6_i32, 192];
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * i % 97) as f32 - 40.0) / 300.0).collect();
        let weight = Array::from_slice(&values, &[rows, columns]);
        for bits in 2..=8 {
            for (granularity, expected) in [
                (Granularity::Channel, Some(64)),
                (Granularity::Tensor, Some(64)),
                (Granularity::Group(96), Some(32)),
                (Granularity::Group(64), Some(64)),
                (Granularity::Group(48), None),
            ] {
                for symmetric in [false, true] {
                    let grid = Grid::new(bits, granularity, symmetric).unwrap();
                    let layer = nearest(&weight, &grid, Clipping::Mse).unwrap();
                    let affine = affine(&layer, Dtype::F32).unwrap();
                    assert_eq!(affine.as_ref().map(|a| a.group), expected);
                    let Some(Affine { group, bits, tensors }) = affine else { continue };
                    let [(_, packed), (_, scales), (_, biases)] = &tensors;
                    let (words, _) = packed.bytes.as_chunks::<4>();
                    let words: Vec<u32> = words.iter().map(|b| u32::from_le_bytes(*b)).collect();
                    let shape = |t: &StoredTensor| [t.shape[0] as i32, t.shape[1] as i32];
                    let floats = |t: &StoredTensor| Array::from_slice(&t.floats().unwrap(), &shape(t));
                    let words = Array::from_slice(&words, &shape(packed));
                    let (scales, biases) = (floats(scales), floats(biases));
                    let found =
                        ops::dequantize(words, scales, &biases, group as i32, i32::from(bits)).unwrap();
                    for (a, b) in found.as_slice::<f32>().iter().zip(layer.values()) {
                        assert!((a - b).abs() < 1e-6, "{bits} bits, {granularity:?}: {a} {b}");
                    }
                }
            }
        }
    }

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
