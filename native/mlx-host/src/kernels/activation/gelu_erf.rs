//! GELU by the normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415).

use mlx_rs::{Array, error::Exception, ops::erf};

use super::{Activation, apply};
use crate::simd::math::{erfc, exp, fma};

struct GeluErf;

impl Activation for GeluErf {
    const NAME: &'static str = "gelu_erf";
    const GRADIENT: &'static str = "gelu_erf gradient";

    #[inline(always)]
    fn value<const FMA: bool>(x: f32) -> f32 {
        0.5 * x * erfc::<FMA>(-x * std::f32::consts::FRAC_1_SQRT_2)
    }

    #[inline(always)]
    fn slope<const FMA: bool>(x: f32) -> f32 {
        // 1 / √(2π)
        const DENSITY: f32 = 0.398_942_3;
        let below = 0.5 * erfc::<FMA>(-x * std::f32::consts::FRAC_1_SQRT_2);
        fma::<FMA>(x * DENSITY, exp::<FMA>(-0.5 * x * x), below)
    }

    fn plain(x: &Array) -> Result<Array, Exception> {
        let number = |v: f32| Array::from_f32(v).as_dtype(x.dtype());
        let e = erf(&x.multiply(number(std::f32::consts::FRAC_1_SQRT_2)?)?)?;
        e.add(number(1.0)?)?.multiply(x)?.multiply(number(0.5)?)
    }
}

/// Exact GELU: 0.5 x (1 + erf(x / √2)).
///
/// `x` has any shape and a floating type, which the result shares.
///
/// # Errors
///
/// If MLX refuses the operation.
pub fn gelu_erf(x: &Array) -> Result<Array, Exception> {
    apply::<GeluErf>(x)
}
