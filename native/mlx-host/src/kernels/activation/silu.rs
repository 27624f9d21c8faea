//! SiLU, also called swish (Elfwing et al., arXiv:1702.03118).

use mlx_rs::{Array, error::Exception, ops::sigmoid as mlx_sigmoid};

use super::{Activation, apply};
use crate::simd::math::{fma, sigmoid};

pub(crate) struct Silu;

impl Activation for Silu {
    const NAME: &'static str = "silu";
    const GRADIENT: &'static str = "silu gradient";

    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        x * sigmoid::<FMA>(x)
    }

    #[inline(always)]
    fn slope<const FMA: bool>(x: f32) -> f32 {
        let s = sigmoid::<FMA>(x);
        fma::<FMA>(x * s, 1.0 - s, s)
    }

    fn plain(x: &Array) -> Result<Array, Exception> {
        mlx_sigmoid(x)?.multiply(x)
    }
}

/// SiLU: x σ(x).
///
/// `x` has any shape and a floating type, which the result shares.
///
/// # Errors
///
/// If MLX refuses the operation.
pub fn silu(x: &Array) -> Result<Array, Exception> {
    apply::<Silu>(x)
}
