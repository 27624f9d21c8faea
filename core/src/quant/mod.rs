//! Grids, rounding to the nearest point, fake quantization, packing.
//!
//! This module is the only place in taq where a quantization formula stands. A weight is quantized as
//!
//! ```text
//! q = clamp(round(w / s + z), qmin, qmax)        ŵ = (q − z) · s
//! ```
//!
//! with one step size s and one zero point z per group of weights ([`Granularity`]), q in the signed range
//! −2^(b−1) … 2^(b−1) − 1 of b bits, and `round` to the nearest integer, ties to even (as numpy's `rint`). z need not be an
//! integer (as in HQQ and in MLX, whose bias is −z · s): a weight that is as often positive as negative wants no point
//! at 0, but one on either side, which matters where points are few.
//!
//! | grid | step size s | zero point z |
//! |---|---|---|
//! | symmetric | absmax / (2^(b−1) − 1) | 0 |
//! | asymmetric | (max(hi, 0) − min(lo, 0)) / (2^b − 1) | qmin − min(lo, 0) / s |
//!
//! Activations are quantized symmetrically around a shift, with one step size per row of the batch
//! ([`fake_quantize`]) and so per timestep ([`InputGrids`]).

mod affine;
mod fake;
mod grid;
mod layer;
mod linear;
mod matrix;
mod nearest;
mod pack;
mod packed;
mod params;
mod refine;
mod rounded;
mod smoothing;
mod weight_only;

pub(crate) use affine::{Affine, GROUPS};
pub use fake::{QDrop, RowGrids, fake_quantize};
pub use grid::{BITS, Granularity, Grid, Layout, activation_qmax};
pub use layer::{InputGrids, QuantizedLayer};
pub use linear::QuantizedLinear;
pub use matrix::{is_finite, to_matrix, to_vec};
pub use nearest::{nearest, nearest_with, round_nearest};
pub use pack::{pack, packed_len, unpack};
pub use packed::{InputQuantizer, PackedLinear, PackedMatrix};
pub use params::{Clipping, GridParams, MSE_CANDIDATES};
pub use smoothing::Smoothing;
pub use weight_only::WeightOnly;

/// 1.5 · 2^23. Of a sum with it, f32 holds no fraction, and its lowest bits are those of the integer.
const ROUND_SHIFT: f32 = 12_582_912.0;

/// Nearest integer, ties to even, for |x| ≤ 2^22. Unlike `f32::round_ties_even` it becomes vector code on every CPU.
#[inline(always)]
fn round_small(x: f32) -> f32 {
    (x + ROUND_SHIFT) - ROUND_SHIFT
}

#[cfg(test)]
mod tests {
    use super::round_small;

    #[test]
    fn rounding_is_half_to_even() {
        for i in -4000..=4000 {
            let x = i as f32 / 8.0;
            assert_eq!(round_small(x), x.round_ties_even(), "{x}");
        }
        for x in [0.499_999_97_f32, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 4_194_303.5, -4_194_303.5] {
            assert_eq!(round_small(x), x.round_ties_even(), "{x}");
        }
    }
}
