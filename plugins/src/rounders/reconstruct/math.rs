//! Exponential and power as straight-line code, which the compiler turns into vector instructions.
//!
//! The polynomials are those of Cephes' `expf` and `logf` (Moshier, netlib.org/cephes).

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

/// e^x to about 2 ulp; x is clamped to −87 … 88, where the result is a normal number.
#[inline(always)]
pub(in crate::rounders) fn exp(x: f32) -> f32 {
    let x = at_most(at_least(x, -87.0), 88.0);
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    // x − n ln 2, with ln 2 in two parts so that the first product is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power_of_two
}

/// ln x for normal x > 0, to about 2 ulp away from 1.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let exponent = (x.to_bits().wrapping_sub(SQRT_HALF) as i32) >> 23;
    let mantissa = f32::from_bits(x.to_bits().wrapping_sub((exponent << 23) as u32));
    let (f, n) = (mantissa - 1.0, exponent as f32);
    let mut p = 7.037_683_6e-2;
    p = p * f - 1.151_461e-1;
    p = p * f + 1.167_699_9e-1;
    p = p * f - 1.242_014_1e-1;
    p = p * f + 1.424_932_3e-1;
    p = p * f - 1.666_805_8e-1;
    p = p * f + 2.000_071_5e-1;
    p = p * f - 2.499_999_4e-1;
    p = p * f + 3.333_333e-1;
    let f2 = f * f;
    f + (p * f * f2 - 0.5 * f2 - n * 2.121_944_4e-4) + n * 0.693_359_4
}

/// x^p for x ≥ 0 and p ≥ 0; below 10⁻³⁰ as at 10⁻³⁰.
#[inline(always)]
pub(in crate::rounders) fn pow(x: f32, p: f32) -> f32 {
    exp(p * ln(at_least(x, 1e-30)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_accurate() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() < 3e-7 * exact, "{x}: {} {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38);
    }

    #[test]
    fn power_is_accurate() {
        for i in 1..=10_000 {
            let x = i as f32 / 10_000.0;
            for p in [0.0, 0.5, 1.0, 2.0, 9.5, 19.0] {
                let exact = f64::from(x).powf(f64::from(p));
                let off = (f64::from(pow(x, p)) - exact).abs();
                // The error of p ln x grows with its size.
                assert!(off < 2e-5 * exact + 1e-36, "{x}^{p}: {} {exact}", pow(x, p));
            }
        }
        assert_eq!(pow(1.0, 19.0), 1.0);
        assert!(pow(0.0, 1.0) < 1e-29);
    }
}
