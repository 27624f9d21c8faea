//! The formulas of AdaRound (Nagel et al., arXiv 2004.10568, §3.2–3.3; as in yhhhli/BRECQ `quant/adaptive_rounding.py`
//! and `quant/block_recon.py`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::math::{at_least, at_most, exp, pow};

/// ζ and γ: the sigmoid is stretched to γ … ζ and clipped to 0 … 1, so that it reaches both ends.
pub(super) const ZETA: f32 = 1.1;
pub(super) const GAMMA: f32 = -0.1;

/// h(V), how far a weight is rounded up: 0 is down, 1 is up. With its derivative, which is 0 where h is clipped.
#[inline(always)]
pub(in crate::rounders) fn rectified_sigmoid(v: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-v));
    let stretched = sigmoid * (ZETA - GAMMA) + GAMMA;
    let slope = (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid);
    (at_most(at_least(stretched, 0.0), 1.0), if (stretched > 0.0) & (stretched < 1.0) { slope } else { 0.0 })
}

/// Where h(V) reaches 0 and 1: beyond −ln 11 … ln 11.
const REACH: f32 = 2.397_895_3;

/// The derivative of h at V, where h(V) is already known.
#[inline(always)]
pub(in crate::rounders) fn slope_at(v: f32, h: f32) -> f32 {
    let sigmoid = (h - GAMMA) * (1.0 / (ZETA - GAMMA));
    if v.abs() < REACH { (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid) } else { 0.0 }
}

/// The V with h(V) = `fraction`, which lies in 0 … 1.
pub(in crate::rounders) fn inverse(fraction: f32) -> f32 {
    -((ZETA - GAMMA) / (fraction - GAMMA) - 1.0).ln()
}

/// The derivative with respect to h of the regulariser 1 − |2h − 1|^β of one weight, which is 1 while it is
/// undecided and 0 when it is decided.
#[inline(always)]
pub(in crate::rounders) fn regulariser_slope(h: f32, beta: f32) -> f32 {
    let u = 2.0 * h - 1.0;
    -2.0 * beta * pow(u.abs(), beta - 1.0).copysign(u)
}

/// How β goes from its first to its last value after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Along a straight line (BRECQ, QDrop, TaQ-DiT).
    #[default]
    Linear,
    /// Along half a cosine: slowly at both ends (AIMET).
    Cosine,
}

impl BetaSchedule {
    /// β at iteration `at` of `iters`; `None` during the warm-up, when nothing is regularised.
    pub(in crate::rounders) fn beta(
        self,
        at: usize,
        iters: usize,
        warm_up: f32,
        [first, last]: [f32; 2],
    ) -> Option<f32> {
        let done = at as f32 / iters as f32;
        if done < warm_up {
            return None;
        }
        let rest = 1.0 - (done - warm_up) / (1.0 - warm_up);
        let share = match self {
            Self::Linear => rest,
            Self::Cosine => 0.5 * (1.0 - (std::f32::consts::PI * rest).cos()),
        };
        Some(last + (first - last) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h64(v: f64) -> f64 {
        (1.2 / (1.0 + (-v).exp()) - 0.1).clamp(0.0, 1.0)
    }

    #[test]
    fn the_sigmoid_and_its_derivative() {
        for i in -600..=600 {
            let v = i as f32 / 100.0;
            let (h, slope) = rectified_sigmoid(v);
            let exact = f64::from(v);
            assert!((f64::from(h) - h64(exact)).abs() < 1e-6, "h({v})");
            let finite = (h64(exact + 1e-5) - h64(exact - 1e-5)) / 2e-5;
            assert!((f64::from(slope) - finite).abs() < 1e-5, "h'({v}) = {slope}, by differences {finite}");
            assert!((slope_at(v, h) - slope).abs() < 1e-6, "h'({v}) = {slope}, from h {}", slope_at(v, h));
        }
        assert_eq!(rectified_sigmoid(5.0), (1.0, 0.0));
        assert_eq!(rectified_sigmoid(-5.0), (0.0, 0.0));
        assert_eq!(rectified_sigmoid(0.0).0, 0.5);
    }

    #[test]
    fn the_inverse_gives_the_fraction_back() {
        for i in 0..=1000 {
            let fraction = i as f32 / 1000.0;
            let (h, _) = rectified_sigmoid(inverse(fraction));
            assert!((h - fraction).abs() < 1e-6, "{fraction} became {h}");
        }
        assert!(inverse(0.5).abs() < 1e-6);
    }

    #[test]
    fn the_derivative_of_the_regulariser() {
        let exact = |h: f64, beta: f64| 1.0 - (2.0 * h - 1.0).abs().powf(beta);
        for beta in [2.0_f32, 3.7, 11.0, 20.0] {
            for i in 0..=200 {
                let h = i as f32 / 200.0;
                let (h64, beta64) = (f64::from(h), f64::from(beta));
                let finite = (exact(h64 + 1e-6, beta64) - exact(h64 - 1e-6, beta64)) / 2e-6;
                let ours = f64::from(regulariser_slope(h, beta));
                assert!(
                    (ours - finite).abs() < 2e-4 * (1.0 + finite.abs()),
                    "β={beta} h={h}: {ours} {finite}"
                );
            }
        }
        assert!(
            (regulariser_slope(0.0, 2.0) - 4.0).abs() < 1e-5
                && (regulariser_slope(1.0, 2.0) + 4.0).abs() < 1e-5
        );
    }

    #[test]
    fn beta_falls_after_the_warm_up() {
        let linear = |at| BetaSchedule::Linear.beta(at, 1000, 0.2, [20.0, 2.0]);
        assert_eq!((linear(0), linear(199)), (None, None));
        assert_eq!(linear(200), Some(20.0));
        assert!((linear(600).unwrap() - 11.0).abs() < 1e-4);
        assert!((linear(999).unwrap() - 2.0225).abs() < 1e-3);
        let cosine = |at| BetaSchedule::Cosine.beta(at, 1000, 0.2, [20.0, 2.0]).unwrap();
        // 2 + 9 (1 + cos(π t)) at t = 0, 1/4, 1/2
        assert!((cosine(200) - 20.0).abs() < 1e-4);
        assert!((cosine(400) - (11.0 + 9.0 * 0.5_f32.sqrt())).abs() < 1e-4);
        assert!((cosine(600) - 11.0).abs() < 1e-4);
        assert_eq!(BetaSchedule::Linear.beta(0, 10, 0.0, [20.0, 2.0]), Some(20.0));
    }
}
