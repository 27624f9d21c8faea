//! GELU with the tanh approximation (Hendrycks and Gimpel, arXiv:1606.08415).
//!
//! 0.5 (1 + tanh u) = σ(2u), so that one exponential suffices and small values keep their
//! relative accuracy.

use mlx_rs::{Array, error::Exception, ops::tanh};

use super::{Activation, apply};
use crate::simd::math::{fma, sigmoid};

/// √(2/π)
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

struct GeluTanh;

impl Activation for GeluTanh {
    const NAME: &'static str = "gelu_tanh";
    const GRADIENT: &'static str = "gelu_tanh gradient";

    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        let u = 2.0 * ROOT * x * fma::<FMA>(CUBIC * x, x, 1.0);
        x * sigmoid::<FMA>(u)
    }

    #[inline(always)]
    fn slope<const FMA: bool>(x: f32) -> f32 {
        // Beyond 30 the slope is 0 or 1; larger powers would overflow.
        let x = if x > 30.0 { 30.0 } else { x };
        let x = if x < -30.0 { -30.0 } else { x };
        let u = 2.0 * ROOT * x * fma::<FMA>(CUBIC * x, x, 1.0);
        let du = 2.0 * ROOT * fma::<FMA>(3.0 * CUBIC * x, x, 1.0);
        let s = sigmoid::<FMA>(u);
        fma::<FMA>(x * du * s, 1.0 - s, s)
    }

    fn plain(x: &Array) -> Result<Array, Exception> {
        let number = |v: f32| Array::from_f32(v).as_dtype(x.dtype());
        let inner = x.square()?.multiply(number(CUBIC)?)?.add(number(1.0)?)?.multiply(x)?;
        let t = tanh(&inner.multiply(number(ROOT)?)?)?;
        t.add(number(1.0)?)?.multiply(x)?.multiply(number(0.5)?)
    }
}

/// GELU by the tanh approximation: 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).
///
/// `x` has any shape and a floating type, which the result shares.
///
/// # Errors
///
/// If MLX refuses the operation.
pub fn gelu_tanh(x: &Array) -> Result<Array, Exception> {
    apply::<GeluTanh>(x)
}
