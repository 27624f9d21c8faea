//! MLX's affine quantization (`mlx.core.quantize`, mlx/backend/cpu/quantized.cpp): in groups along the rows,
//! `w = scale · q + bias` with q from 0 to 2^bits − 1, integers as one stream of bits, the lowest first, seen as u32.
//!
//! Ours is `w = s (q′ − z)` with q′ from −2^(bits − 1): the same integers with `q = q′ + 2^(bits − 1)`, `scale = s` and
//! `bias = −s (2^(bits − 1) + z)`, repeated for every group of a row.

use super::pack;
use crate::{Result, RoundedLayer};

/// Sizes of groups that MLX has, the cheapest first.
pub(crate) const GROUPS: [usize; 3] = [128, 64, 32];

/// A rounded weight, `[out_features, in_features]`, as MLX stores it.
pub(crate) struct Affine {
    /// Neighbouring weights of a row that share a scale and a bias: 32, 64 or 128.
    pub group: usize,
    /// 2 to 6, or 8.
    pub bits: u8,
    /// `[out_features, in_features · bits / 32]` words of 32 bits, little-endian.
    pub words: Vec<u8>,
    /// `[out_features, in_features / group]`.
    pub scales: Vec<f32>,
    /// Like `scales`.
    pub biases: Vec<f32>,
}

impl RoundedLayer {
    /// The weight on MLX's grid, in groups of at most `largest`; `None` if there is no such grid: columns that are not a
    /// multiple of a group, or groups of another size. Expects a layer that [`Self::validate`] accepts.
    pub(crate) fn affine(&self, largest: usize) -> Result<Option<Affine>> {
        let [rows, columns] = self.shape;
        // The weights that share a step size; those of a whole tensor share it by rows too.
        let shared = self.grid.layout(self.shape)?.group_len.min(columns);
        let fits = |g: &usize| *g <= largest && columns.is_multiple_of(*g) && shared.is_multiple_of(*g);
        let group = GROUPS.into_iter().find(fits);
        let Some(group) = group else { return Ok(None) };
        // MLX has no integers of 7 bits; those fit into 8.
        let bits = if self.grid.bits == 7 { 8 } else { self.grid.bits };
        let offset = i16::from(self.grid.qmin());
        // The pattern of bits of q is that of q less 2^bits where it does not fit as a signed integer.
        let pattern = |&q: &i8| ((i16::from(q) - offset) << (16 - bits) >> (16 - bits)) as i8;
        let integers: Vec<i8> = self.weight_int.iter().map(pattern).collect();
        let per_row = columns / group;
        let (mut scales, mut biases) = (Vec::new(), Vec::new());
        for g in 0..rows * per_row {
            // Where the group begins tells which step size it has.
            let at = (g / per_row * columns + g % per_row * group) * self.scale.len() / (rows * columns);
            scales.push(self.scale[at]);
            biases.push(self.scale[at] * (f32::from(offset) - self.zero_point[at]));
        }
        Ok(Some(Affine { group, bits, words: pack(&integers, bits)?, scales, biases }))
    }
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
                    let affine = layer.affine(128).unwrap();
                    assert_eq!(affine.as_ref().map(|a| a.group), expected);
                    let Some(Affine { group, bits, words, scales, biases }) = affine else { continue };
                    let (words, _) = words.as_chunks::<4>();
                    let words: Vec<u32> = words.iter().map(|b| u32::from_le_bytes(*b)).collect();
                    let words = Array::from_slice(&words, &[rows, columns * i32::from(bits) / 32]);
                    let floats = |v: &[f32]| Array::from_slice(v, &[rows, columns / group as i32]);
                    let (scales, biases) = (floats(&scales), floats(&biases));
                    let found =
                        ops::dequantize(words, scales, &biases, group as i32, i32::from(bits)).unwrap();
                    for (a, b) in found.as_slice::<f32>().iter().zip(layer.values()) {
                        assert!((a - b).abs() < 1e-6, "{bits} bits, {granularity:?}: {a} {b}");
                    }
                }
            }
        }
    }
}
