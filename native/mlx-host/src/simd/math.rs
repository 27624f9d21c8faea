//! Elementary functions in `f32` that vectorise: no calls, no tables, no branches.
//!
//! `exp` is the classic reduction by multiples of ln 2 with a Taylor-like polynomial (the scheme of
//! Cephes' `expf`, S. Moshier). `erfc` is the rational-argument Chebyshev fit of Numerical Recipes
//! in C, 2nd ed., §6.2. The tests bound the errors against `f64`.

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e^x: 0 below about -87.3, infinity above about 88.4; NaN for NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Rounds to 2^128, whose exponent bits are those of infinity.
    const MAX: f32 = 88.8;
    const MIN: f32 = -87.336;
    let clamped = if x > MAX { MAX } else { x };
    let clamped = if clamped < MIN { MIN } else { clamped };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_HI, clamped);
    let r = fma::<FMA>(n, -LN2_LO, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 5.0e-1);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = y * scale;
    if x < MIN { 0.0 } else { value }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The complementary error function.
#[inline(always)]
pub(crate) fn erfc<const FMA: bool>(x: f32) -> f32 {
    let z = x.abs();
    let t = 1.0 / fma::<FMA>(0.5, z, 1.0);
    let mut p = 0.170_872_77;
    p = fma::<FMA>(p, t, -0.822_152_23);
    p = fma::<FMA>(p, t, 1.488_515_9);
    p = fma::<FMA>(p, t, -1.135_204);
    p = fma::<FMA>(p, t, 0.278_868_07);
    p = fma::<FMA>(p, t, -0.186_288_06);
    p = fma::<FMA>(p, t, 0.096_784_18);
    p = fma::<FMA>(p, t, 0.374_091_96);
    p = fma::<FMA>(p, t, 1.000_023_7);
    p = fma::<FMA>(p, t, -1.265_512_2);
    let tail = t * exp::<FMA>(fma::<FMA>(-z, z, p));
    if x < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
        let steps = 200_000;
        (0..=steps).map(move |i| from + (to - from) * i as f32 / steps as f32)
    }

    fn worst<const FMA: bool>(f: fn(f32) -> f32, exact: fn(f64) -> f64, from: f32, to: f32) -> f64 {
        sweep(from, to)
            .map(|x| (f64::from(f(x)) - exact(f64::from(x))).abs() / exact(f64::from(x)).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate() {
        assert!(worst::<false>(exp::<false>, f64::exp, -87.0, 88.0) < 2e-7);
        assert!(worst::<true>(exp::<true>, f64::exp, -87.0, 88.0) < 2e-7);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-200.0), 0.0);
        assert_eq!(exp::<true>(1e30), f32::INFINITY);
        assert_eq!(exp::<false>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_accurate() {
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst::<false>(sigmoid::<false>, exact, -80.0, 80.0) < 3e-7);
        assert!(worst::<true>(sigmoid::<true>, exact, -80.0, 80.0) < 3e-7);
        assert!(sigmoid::<true>(f32::NAN).is_nan());
    }

    /// erf by its Taylor series, for moderate arguments.
    fn erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn erfc_is_accurate() {
        for x in sweep(-3.5, 3.5) {
            let error = (f64::from(erfc::<true>(x)) - (1.0 - erf(f64::from(x)))).abs();
            assert!(error < 5e-7, "erfc({x}) is off by {error}");
        }
        assert_eq!(erfc::<true>(20.0), 0.0);
        assert_eq!(erfc::<true>(-20.0), 2.0);
    }
}
