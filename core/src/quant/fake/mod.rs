//! Fake quantization of activations: onto the grid and back to floating point.
//!
//! The gradient with respect to the activations passes straight through (Bengio et al., arXiv 1308.3432); the one
//! with respect to the step size is LSQ's (Esser et al., arXiv 1902.08153, equation 3), without its scaling, which
//! Adam would undo.

mod graph;
mod kernel;
#[cfg(test)]
mod tests;

use mlx_rs::{Array, Dtype};

use super::activation_qmax;
use crate::{Error, Result};

/// The grid of every row of a batch of activations `[batch, …, channels]`.
#[derive(Debug, Clone, Copy)]
pub struct RowGrids<'a> {
    /// Step sizes s, `[batch]`, f32. Finite and greater than 0; this is not checked, since they may be part of a graph
    /// that is being differentiated.
    pub scale: &'a Array,
    /// Bits of each row, 2 to 8.
    pub bits: &'a [u8],
    /// What is subtracted before and added after, z, `[batch, channels]`; 0 if absent.
    pub shift: Option<&'a Array>,
    /// What channels are divided by, m, `[channels]`; 1 if absent.
    pub multiplier: Option<&'a Array>,
}

/// Leaves a random share of the elements in full precision, which keeps learned parameters from adapting to one
/// pattern of errors (Wei et al., *QDrop*, arXiv 2203.05740).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QDrop {
    /// Share of the elements that stay as they are, 0 to 1.
    pub probability: f32,
    /// The same seed leaves the same elements (on one kind of device).
    pub seed: u32,
}

/// Rounds activations over their multiplier to a symmetric grid per row of the batch:
/// `clamp(round((x − z) / (s·m)), −Q − 1, Q) · s + z / m` with Q = 2^(bits − 1) − 1, ties to even.
///
/// The result, an approximation of x / m, has the shape and dtype of `x`, and is computed in f32. NaN stays NaN. With
/// [`QDrop`], the elements it picks become x / m.
///
/// The gradient with respect to `x` is 1/m where the integer is within the range before clamping and 0 where it
/// is clamped; with respect to s it is the integer less, where nothing was clamped, what was rounded. None
/// flows to the shift and the multiplier.
pub fn fake_quantize(x: &Array, grids: RowGrids<'_>, drop: Option<QDrop>) -> Result<Array> {
    let qmax = check(x, grids)?;
    // In half precision a quotient near 100 is off by up to a sixteenth of a step, or half of one in bfloat16.
    let f32s = |z: Option<&Array>| z.map(|z| z.as_dtype(Dtype::Float32)).transpose();
    let (shift, multiplier) = (f32s(grids.shift)?, f32s(grids.multiplier)?);
    let grids = RowGrids { shift: shift.as_ref(), multiplier: multiplier.as_ref(), ..grids };
    let wide = x.as_dtype(Dtype::Float32)?;
    let quantized = match mlx_host::on_cpu() {
        true => kernel::fake_quantize(&wide, grids, qmax, drop),
        false => graph::fake_quantize(&wide, grids, &qmax, drop),
    };
    Ok(quantized?.as_dtype(x.dtype())?)
}

/// Checks the arguments; returns Q of each row.
fn check(x: &Array, grids: RowGrids<'_>) -> Result<Vec<f32>> {
    let wrong = |what: &str, expected: String, found: &[i32]| {
        Err(Error::Shape { what: what.to_owned(), expected, found: found.to_vec() })
    };
    let (&[batch, .., channels], Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) = (x.shape(), x.dtype())
    else {
        return wrong("activations to quantize", "[batch, …, channels] of floating point".into(), x.shape());
    };
    if x.size() == 0 {
        return wrong("activations to quantize", "[batch, …, channels], none of them 0".into(), x.shape());
    }
    if grids.scale.shape() != [batch] {
        let expected = format!("[{batch}], one per row of the batch");
        return wrong("step sizes of activations", expected, grids.scale.shape());
    }
    if grids.bits.len() != batch as usize {
        let expected = format!("[{batch}], one per row of the batch");
        return wrong("bits of activations", expected, &[grids.bits.len() as i32]);
    }
    if let Some(z) = grids.shift.filter(|z| z.shape() != [batch, channels]) {
        return wrong("shift of activations", format!("[{batch}, {channels}]"), z.shape());
    }
    if let Some(m) = grids.multiplier.filter(|m| m.shape() != [channels]) {
        return wrong("multiplier of activations", format!("[{channels}]"), m.shape());
    }
    grids.bits.iter().map(|&b| activation_qmax(b)).collect()
}

/// Which elements [`QDrop`] leaves alone: those whose hashed position is below the threshold.
#[derive(Clone, Copy)]
struct Mask {
    seed: u32,
    below: u32,
}

impl Mask {
    fn new(drop: QDrop) -> Self {
        // Spread the seed first: neighbouring seeds must not give neighbouring masks.
        let seed = drop.seed.wrapping_mul(0x9e37_79b9).rotate_left(13) ^ 0x85eb_ca6b;
        Self { seed, below: (f64::from(drop.probability.clamp(0.0, 1.0)) * f64::from(u32::MAX)) as u32 }
    }

    /// Whether the element at this position of the row-major array stays as it is.
    #[inline(always)]
    fn keeps(self, index: u32) -> bool {
        let mut hash = (index ^ self.seed).wrapping_mul(0x9e37_79b1);
        hash = (hash ^ (hash >> 15)).wrapping_mul(0x85eb_ca77);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae3d);
        (hash ^ (hash >> 16)) < self.below
    }
}
