//! Exponential and power as straight-line code, which the compiler turns into vector instructions.
//!
//! The polynomials are minimax fits: of 2^r on −½ … ½, and of log₂(1 + f) / f on √½ … √2, found by reweighted least squares.

/// 1.5 · 2^23: added to a small number, it leaves the nearest integer in the low bits.
const SHIFT: f32 = 12_582_912.0;

/// The larger of two numbers, in one instruction: unlike `f32::max` it does not care for NaN (the result is `low`).
#[inline(always)]
pub(in crate::rounders) fn at_least(x: f32, low: f32) -> f32 {
    if x > low { x } else { low }
}

/// The smaller of two numbers, likewise.
#[inline(always)]
pub(in crate::rounders) fn at_most(x: f32, high: f32) -> f32 {
    if x < high { x } else { high }
}

/// 2^x to about 2 ulp; x is clamped to −126 … 126, where the result is a normal number.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let x = at_most(at_least(x, -126.0), 126.0);
    let shifted = x + SHIFT;
    let r = x - (shifted - SHIFT);
    let mut p = 1.327_647e-3;
    p = p * r + 9.675_541e-3;
    p = p * r + 5.550_713e-2;
    p = p * r + 2.402_212e-1;
    p = p * r + 6.931_469_7e-1;
    p = p * r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// e^x to about 10⁻⁷ · (2 + |x|) of its value; x is clamped to −87 … 87.
#[inline(always)]
pub(in crate::rounders) fn exp(x: f32) -> f32 {
    exp2(x * std::f32::consts::LOG2_E)
}

/// log₂ x to about 3 · 10⁻⁶ for x > 0; −127 at 0.
#[inline(always)]
fn log2(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let exponent = (x.to_bits().wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(x.to_bits().wrapping_sub((exponent << 23) as u32)) - 1.0;
    let mut p = -2.066_045_7e-1;
    p = p * f + 3.221_427_8e-1;
    p = p * f - 3.674_838_2e-1;
    p = p * f + 4.793_497e-1;
    p = p * f - 7.211_323e-1;
    p = p * f + 1.442_713_4;
    p * f + exponent as f32
}

/// x^p for x ≥ 0 and p ≥ 0, to about 2 · 10⁻⁶ · (1 + p) of its value.
#[inline(always)]
pub(in crate::rounders) fn pow(x: f32, p: f32) -> f32 {
    exp2(p * log2(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_accurate() {
        for i in -87_000..=87_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let limit = 1e-7 * (3.0 + f64::from(x.abs())) * exact;
            assert!((f64::from(exp(x)) - exact).abs() < limit, "{x}: {} {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e37);
    }

    #[test]
    fn power_is_accurate() {
        for i in 1..=10_000 {
            let x = i as f32 / 10_000.0;
            for p in [0.0, 0.5, 1.0, 2.0, 9.5, 19.0] {
                let exact = f64::from(x).powf(f64::from(p));
                let off = (f64::from(pow(x, p)) - exact).abs();
                // The error of p log₂ x grows with p.
                assert!(off < 3e-6 * (1.0 + f64::from(p)) * exact + 1e-36, "{x}^{p}: {} {exact}", pow(x, p));
            }
        }
        assert_eq!((pow(1.0, 19.0), pow(0.0, 0.0)), (1.0, 1.0));
        assert!(pow(0.0, 1.0) < 1e-37);
    }
}
