//! A weight on MLX's grid.

use mlx_rs::{Array, Dtype, ops};

use crate::quant::Affine;
use crate::{Result, RoundedLayer};

/// Rows for which MLX's CUDA kernels take integers apart once (mlx/backend/cuda/quantized/qmm/qmm_sm80.cu, `tile_m`).
const TILE: i32 = 64;

/// A packed weight `[out_features, in_features]` on the device. Weights that MLX has no grid for (groups of another size than
/// multiples of 32) are kept as numbers.
///
/// For a few rows, MLX's `quantized_matmul` takes the integers apart while it multiplies. For many, they are taken apart into
/// a matrix that lives as long as the product: `quantized_matmul` does it again for every 64 rows. On an H100, in float16, at
/// 2048 rows and 4 bits, 6144 to 1536 features take 0.24 ms packed and 0.10 ms unpacked first.
#[derive(Debug, Clone)]
pub struct PackedMatrix(Weight);

#[derive(Debug, Clone)]
enum Weight {
    /// `[out_features, in_features]`.
    Whole(Array),
    /// As in [`Affine`], `words` as u32.
    Packed { words: Array, scales: Array, biases: Array, group: i32, bits: i32 },
}

impl PackedMatrix {
    /// The weight with these integers, for inputs of this element type (`Float32`, `Float16` or `Bfloat16`), which step
    /// sizes and zero points are rounded to; what was learned of the layer's input is not looked at.
    ///
    /// # Errors
    /// If the layer is none that [`RoundedLayer::validate`] accepts.
    pub fn new(rounded: &RoundedLayer, dtype: Dtype) -> Result<Self> {
        let [outputs, inputs] = rounded.shape;
        rounded.check_numbers("packed weight")?;
        // Four bytes a number, groups of 128 exceed the shared memory of MLX's CUDA kernel.
        let largest = if dtype == Dtype::Float32 { 64 } else { 128 };
        let weight = match rounded.affine(largest)? {
            None => Weight::Whole(rounded.dequantize()?.as_dtype(dtype)?),
            Some(Affine { group, bits, words, scales, biases }) => {
                let (words, _) = words.as_chunks::<4>();
                let words: Vec<u32> = words.iter().map(|b| u32::from_le_bytes(*b)).collect();
                let floats = |values: &[f32]| {
                    Array::from_slice(values, &[outputs as i32, (inputs / group) as i32]).as_dtype(dtype)
                };
                Weight::Packed {
                    words: Array::from_slice(&words, &[outputs as i32, (words.len() / outputs) as i32]),
                    scales: floats(&scales)?,
                    biases: floats(&biases)?,
                    group: group as i32,
                    bits: i32::from(bits),
                }
            }
        };
        let weight = Self(weight);
        // Nothing of what it was made from is to be held on to.
        mlx_rs::transforms::eval(weight.arrays())?;
        Ok(weight)
    }

    /// Whether it is packed.
    pub fn is_packed(&self) -> bool {
        matches!(self.0, Weight::Packed { .. })
    }

    /// Bytes that it occupies.
    pub fn size(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let arrays = match &self.0 {
            Weight::Whole(weight) => vec![weight],
            Weight::Packed { words, scales, biases, .. } => vec![words, scales, biases],
        };
        arrays.into_iter()
    }

    /// `x Wᵀ + b`, `[…, out_features]`, of `x`, `[…, in_features]`, in its type, and `bias`, `[out_features]`.
    pub fn multiply(&self, x: &Array, bias: Option<&Array>) -> Result<Array> {
        let bias = bias.map(|b| b.as_dtype(x.dtype())).transpose()?;
        let (words, scales, biases, group, bits) = match &self.0 {
            Weight::Whole(weight) => return Ok(mlx_host::linear(x, weight, bias.as_ref())?),
            Weight::Packed { words, scales, biases, group, bits } => (words, scales, biases, *group, *bits),
        };
        let width = x.shape().last().copied().unwrap_or(1);
        let rows = x.size() as i32 / width.max(1);
        if rows > TILE {
            let weight = ops::dequantize(words, scales, biases, group, bits)?;
            return Ok(mlx_host::linear(x, &weight, bias.as_ref())?);
        }
        // All rows in one product: a batch of products would have more tiles that are not full.
        let y = ops::quantized_matmul(&x.reshape(&[rows, width])?, words, scales, biases, true, group, bits)?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = words.dim(0);
        }
        let y = y.reshape(&shape)?;
        Ok(bias.map_or(Ok(y.clone()), |bias| y.add(bias))?)
    }
}
