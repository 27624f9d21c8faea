//! GGUF (ggml's docs/gguf.md, version 3), as ComfyUI-GGUF and stable-diffusion.cpp read a diffusion transformer:
//! Stability AI's names without a prefix, architecture `sd3`.
//!
//! ggml's blocks of 32 weights with a step size and a minimum, `w = d · q + m`, hold our grids as they are: up to 4 bits in
//! `Q4_1`, 5 in `Q5_1`; d and m are rounded to 16 bits. 6 to 8 bits have no such block, and are rounded once more, to `Q8_0`. So
//! are layers whose columns have multipliers. Matrices that were not rounded become f16 unless another type is asked for, vectors
//! f32, as ggml's own tools have it.
//!
//! ggml drops sides of length 1 in front, and with them the shape of `pos_embed` (ComfyUI-GGUF, issue 136): shapes of more than
//! two sides are told in `comfy.gguf.orig_shape.NAME`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;

use super::{multiplier, plain_weight};
use crate::artifacts::atomic_write_bytes;
use crate::checkpoint::Original;
use crate::{Checkpoint, LayerId, Result, RoundedLayer, StoredTensor};

/// Where tensors begin, in bytes.
pub(in crate::pipeline) const ALIGNMENT: usize = 32;
/// Weights in a block.
pub(in crate::pipeline) const BLOCK: usize = 32;

/// ggml's types that are written, with their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::pipeline) enum Kind {
    F32 = 0,
    F16 = 1,
    Q4_1 = 3,
    Q5_1 = 7,
    Q8_0 = 8,
    Bf16 = 30,
}

impl Kind {
    const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Q4_1, Self::Q5_1, Self::Q8_0, Self::Bf16];

    /// The type of ggml's number.
    pub(in crate::pipeline) fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// Numbers that lie together.
    pub(in crate::pipeline) fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_1 | Self::Q5_1 | Self::Q8_0 => BLOCK,
        }
    }

    /// Bytes that they take.
    pub(in crate::pipeline) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_1 => 4 + BLOCK / 2,
            Self::Q5_1 => 8 + BLOCK / 2,
            Self::Q8_0 => 2 + BLOCK,
        }
    }
}

/// A tensor of a file.
pub(in crate::pipeline) struct Tensor {
    pub(in crate::pipeline) name: String,
    /// Outermost first, as in safetensors.
    pub(in crate::pipeline) shape: Vec<usize>,
    pub(in crate::pipeline) kind: Kind,
    pub(in crate::pipeline) bytes: Vec<u8>,
}

/// Writes `model.gguf`, matrices that were not rounded in `dtype`, by default f16. Returns its path, how many layers kept their
/// integers, and the layers that did not.
pub(super) fn write(
    checkpoint: &Checkpoint,
    layers: &[(LayerId, RoundedLayer)],
    dtype: Option<Dtype>,
    out: &Path,
) -> Result<(PathBuf, usize, Vec<LayerId>)> {
    let matrices = dtype.unwrap_or(Dtype::F16);
    let mut rounded: HashMap<String, (&LayerId, &RoundedLayer)> = HashMap::new();
    for (id, layer) in layers {
        rounded.insert(format!("{}.weight", checkpoint.module(id)?), (id, layer));
    }
    let (mut tensors, mut packed, mut again) = (Vec::new(), 0, Vec::new());
    for (name, original) in &checkpoint.original {
        let parts = original.parts();
        let grids: Option<Vec<_>> = parts.iter().map(|part| rounded.get(part).copied()).collect();
        let tensor = match grids.filter(|all| all.iter().all(|(_, l)| l.shape[1].is_multiple_of(BLOCK))) {
            Some(grids) => {
                // What is stacked has one type: the widest that a part needs.
                let kind = grids.iter().map(|(_, layer)| kind(layer)).max().unwrap_or(Kind::F16);
                let mut bytes = Vec::new();
                for (id, layer) in &grids {
                    bytes.extend(encode(layer, kind));
                    if kind == Kind::Q8_0 { again.push((*id).clone()) } else { packed += 1 }
                }
                let rows = grids.iter().map(|(_, l)| l.shape[0]).sum();
                Tensor { name: name.clone(), shape: vec![rows, grids[0].1.shape[1]], kind, bytes }
            }
            None => plain(checkpoint, name, original, matrices, &rounded)?,
        };
        tensors.push(tensor);
    }
    let path = out.join("model.gguf");
    atomic_write_bytes(&path, &file(&tensors))?;
    Ok((path, packed, again))
}

/// The narrowest type that holds the layer's integers.
pub(in crate::pipeline) fn kind(layer: &RoundedLayer) -> Kind {
    let blocks =
        layer.grid.layout(layer.shape).is_ok_and(|l| l.group_len.min(layer.shape[1]).is_multiple_of(BLOCK));
    match layer.grid.bits {
        _ if !blocks || multiplier(layer).is_some() => Kind::Q8_0,
        ..=4 => Kind::Q4_1,
        5 => Kind::Q5_1,
        _ => Kind::Q8_0,
    }
}

/// The layer in blocks.
pub(in crate::pipeline) fn encode(layer: &RoundedLayer, kind: Kind) -> Vec<u8> {
    if kind == Kind::Q8_0 {
        return plain_weight(layer).chunks(BLOCK).flat_map(q8_0).collect();
    }
    let lowest = layer.grid.qmin();
    let per_scale = layer.weight_int.len() / layer.scale.len();
    let mut bytes = Vec::new();
    for (at, block) in layer.weight_int.chunks(BLOCK).enumerate() {
        let group = at * BLOCK / per_scale;
        let (scale, zero) = (layer.scale[group], layer.zero_point[group]);
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        bytes.extend(f16::from_f32(scale * (f32::from(lowest) - zero)).to_le_bytes());
        let q = |i: usize| (i16::from(block[i]) - i16::from(lowest)) as u8;
        if kind == Kind::Q5_1 {
            let fifth = (0..BLOCK).fold(0_u32, |bits, i| bits | u32::from(q(i) >> 4) << i);
            bytes.extend(fifth.to_le_bytes());
        }
        bytes.extend((0..BLOCK / 2).map(|i| (q(i) & 15) | (q(i + BLOCK / 2) & 15) << 4));
    }
    bytes
}

/// `quantize_row_q8_0_ref` of ggml-quants.c: to the nearest, symmetric, halves away from 0.
fn q8_0(block: &[f32]) -> Vec<u8> {
    let largest = block.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let integers = block.iter().map(|v| (v * inverse).round() as i8 as u8);
    f16::from_f32(scale).to_le_bytes().into_iter().chain(integers).collect()
}

/// A tensor that keeps floating-point numbers, put together from its parts; matrices in `matrices`, vectors in f32.
pub(in crate::pipeline) fn plain(
    checkpoint: &Checkpoint,
    name: &str,
    original: &Original,
    matrices: Dtype,
    rounded: &HashMap<String, (&LayerId, &RoundedLayer)>,
) -> Result<Tensor> {
    // In f32 first: of a layer that was rounded, the weights as they are, not as the model's files would hold them.
    let mut parts = BTreeMap::new();
    for part in original.parts() {
        let stored = checkpoint.tensor(part)?;
        let values = match rounded.get(part) {
            Some((_, layer)) => plain_weight(layer),
            None => stored.floats()?,
        };
        parts.insert(part.clone(), StoredTensor::of_floats(&values, &stored.shape, Dtype::F32)?);
    }
    let whole = original.assemble(&parts)?;
    let dtype = if whole.shape.len() < 2 { Dtype::F32 } else { matrices };
    let kind = match dtype {
        Dtype::F32 => Kind::F32,
        Dtype::BF16 => Kind::Bf16,
        _ => Kind::F16,
    };
    let StoredTensor { shape, bytes, .. } = whole.to_dtype(dtype)?;
    Ok(Tensor { name: name.to_owned(), shape, kind, bytes })
}

/// The whole file.
pub(in crate::pipeline) fn file(tensors: &[Tensor]) -> Vec<u8> {
    let shapes: Vec<&Tensor> = tensors.iter().filter(|t| t.shape.len() > 2).collect();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((3 + shapes.len() as u64).to_le_bytes());
    string(&mut bytes, "general.architecture");
    bytes.extend(8_u32.to_le_bytes());
    string(&mut bytes, "sd3");
    // The layout of quantized blocks: ggml's GGML_QNT_VERSION.
    for (key, value) in [("general.quantization_version", 2_u32), ("general.file_type", file_type(tensors))] {
        string(&mut bytes, key);
        bytes.extend(4_u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    for tensor in shapes {
        string(&mut bytes, &format!("comfy.gguf.orig_shape.{}", tensor.name));
        // An array of i32.
        bytes.extend([9_u32, 5].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend((tensor.shape.len() as u64).to_le_bytes());
        bytes.extend(tensor.shape.iter().flat_map(|&side| (side as i32).to_le_bytes()));
    }
    let mut offset = 0;
    for tensor in tensors {
        string(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        bytes.extend(tensor.shape.iter().rev().flat_map(|&side| (side as u64).to_le_bytes()));
        bytes.extend((tensor.kind as u32).to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
    }
    for tensor in tensors {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(&tensor.bytes);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// What most of the file is: llama.cpp's number.
fn file_type(tensors: &[Tensor]) -> u32 {
    let most =
        [(Kind::F32, 0), (Kind::Bf16, 32), (Kind::Q4_1, 3), (Kind::Q5_1, 9), (Kind::Q8_0, 7), (Kind::F16, 1)];
    let count = |kind: Kind| tensors.iter().filter(|t| t.kind == kind).map(|t| t.bytes.len()).sum::<usize>();
    most.into_iter().max_by_key(|(kind, _)| count(*kind)).map_or(1, |(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Grid;

    fn layer(bits: u8, weight_int: Vec<i8>) -> RoundedLayer {
        let (scale, zero_point) = (vec![0.5], vec![1.0]);
        let shape = [1, weight_int.len()];
        RoundedLayer {
            grid: Grid::channel(bits).unwrap(),
            shape,
            weight_int,
            scale,
            zero_point,
            learned: None,
        }
    }

    #[test]
    fn blocks_by_hand() {
        // 0 and 1 of the first half, 15 of the second: nibbles low and high; d = 0.5, m = 0.5 · (−8 − 1).
        let mut q = vec![-8_i8; 32];
        q[1] = -7;
        q[16] = 7;
        let four = layer(4, q.clone());
        assert_eq!(kind(&four), Kind::Q4_1);
        let bytes = encode(&four, Kind::Q4_1);
        let d_m: Vec<u8> = [0.5_f32, -4.5].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(bytes[..4], d_m);
        assert_eq!(bytes[4..7], [0xf0, 0x01, 0x00]);
        assert_eq!(bytes.len(), 20);
        // The same of 5 bits lie 8 above the lowest integer, −16: q = 8, 9 and 23.
        let five = layer(5, q);
        assert_eq!(kind(&five), Kind::Q5_1);
        let bytes = encode(&five, Kind::Q5_1);
        assert_eq!(bytes[4..8], (1_u32 << 16).to_le_bytes());
        assert_eq!(bytes[8..10], [0x78, 0x89]);
        assert_eq!(bytes.len(), 24);
        assert_eq!(kind(&layer(6, vec![0; 32])), Kind::Q8_0);
    }

    #[test]
    fn eight_bits_are_rounded_as_ggml_does() {
        let mut block = [0.0_f32; 32];
        (block[0], block[1], block[2]) = (-254.0, 1.0, 3.0);
        let bytes = q8_0(&block);
        assert_eq!(bytes[..2], f16::from_f32(2.0).to_le_bytes());
        assert_eq!(bytes[2..5].iter().map(|&b| b as i8).collect::<Vec<_>>(), [-127, 1, 2]);
        assert_eq!(q8_0(&[0.0; 32]), [0; 34]);
    }
}
