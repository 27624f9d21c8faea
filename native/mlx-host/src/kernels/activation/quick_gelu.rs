//! The sigmoid approximation of GELU that OpenAI's CLIP uses (arXiv:1606.08415, §2).

use mlx_rs::{Array, error::Exception, ops::sigmoid as mlx_sigmoid};

use super::{Activation, apply};
use crate::simd::math::{fma, sigmoid};

const FACTOR: f32 = 1.702;

struct QuickGelu;

impl Activation for QuickGelu {
    const NAME: &'static str = "quick_gelu";
    const GRADIENT: &'static str = "quick_gelu gradient";

    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        x * sigmoid::<FMA>(FACTOR * x)
    }

    #[inline(always)]
    fn slope<const FMA: bool>(x: f32) -> f32 {
        let s = sigmoid::<FMA>(FACTOR * x);
        fma::<FMA>(FACTOR * x * s, 1.0 - s, s)
    }

    fn plain(x: &Array) -> Result<Array, Exception> {
        let factor = Array::from_f32(FACTOR).as_dtype(x.dtype())?;
        mlx_sigmoid(&x.multiply(factor)?)?.multiply(x)
    }
}

/// Quick GELU: x σ(1.702 x).
///
/// `x` has any shape and a floating type, which the result shares.
///
/// # Errors
///
/// If MLX refuses the operation.
pub fn quick_gelu(x: &Array) -> Result<Array, Exception> {
    apply::<QuickGelu>(x)
}
