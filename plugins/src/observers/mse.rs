//! The symmetric range on which the values lose least when they are quantized: where the mean squared error of rounding
//! inside and of clipping outside is smallest (Banner et al., arXiv 1810.05723, measured instead of modelled; the search
//! that PTQ toolkits call an MSE observer).
//!
//! The error of a range is not taken over the values but over a logarithmic histogram of them, each of whose bins is
//! treated as evenly filled: 1/64 of its magnitude wide, it is narrower than or about as wide as a step of eight bits where
//! most of the error is made. That needs one pass, no memory that grows, and does not depend on batches.

use multiversion::multiversion;
use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::stats::{InputRange, LogBin};
use taq_core::{Error, ObservedInput, Observer, Result, register};

/// Shares of the largest magnitude that are tried at first.
const COARSE: u32 = 64;
/// Halvings of the place around the best of them.
const FINE: u32 = 10;

/// Settings of `mse`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MseSettings {
    /// Bits of the grid that the range is for, 2 to 8.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
}

impl Default for MseSettings {
    fn default() -> Self {
        Self { bits: 8 }
    }
}

/// The tensor: the best symmetric range. Channels: their extremes over all batches, within it.
#[derive(Debug)]
pub struct Mse {
    bits: u8,
}

impl Mse {
    /// An observer that has seen nothing.
    pub fn new(settings: MseSettings) -> Result<Self> {
        if !(2..=8).contains(&settings.bits) {
            let reason = format!("bits must be 2 to 8, not {}", settings.bits);
            return Err(Error::settings("observer `mse`", reason));
        }
        Ok(Self { bits: settings.bits })
    }
}

impl Observer for Mse {
    fn wants_distribution(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>, all: &ObservedInput<'_>) -> Result<InputRange> {
        let range = InputRange::from(all.extremes.clone());
        let bins: Vec<LogBin> = all.distribution.into_iter().flat_map(|d| d.bins()).collect();
        let clip = best_range(&bins, f64::from(range.absmax()), self.bits) as f32;
        Ok(range.within(-clip, clip))
    }
}

/// The magnitude up to which a grid of so many bits should reach.
fn best_range(bins: &[LogBin], absmax: f64, bits: u8) -> f64 {
    let at = |share: f64| error(bins, absmax * share, bits);
    let width = 1.0 / f64::from(COARSE);
    let coarse = (1..=COARSE).map(|i| f64::from(i) * width).map(|share| (share, at(share)));
    let Some(mut best) = coarse.min_by(|a, b| a.1.total_cmp(&b.1)) else { return absmax };
    let mut apart = width;
    for _ in 0..FINE {
        apart /= 2.0;
        for share in [best.0 - apart, best.0 + apart] {
            if share > 0.0 && share <= 1.0 {
                let found = at(share);
                best = if found < best.1 { (share, found) } else { best };
            }
        }
    }
    absmax * best.0
}

/// Sum of squared errors on the grid `scale · {−2^(bits−1) … 2^(bits−1) − 1}` whose outermost positive point is `clip`.
#[multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn error(bins: &[LogBin], clip: f64, bits: u8) -> f64 {
    let levels = f64::from((1u32 << (bits - 1)) - 1);
    let scale = clip / levels;
    if scale <= 0.0 {
        return 0.0;
    }
    let of = |bin: &LogBin| {
        let (near, far, levels) =
            if bin.low < 0.0 { (-bin.high, -bin.low, levels + 1.0) } else { (bin.low, bin.high, levels) };
        bin.count as f64 * (squares(far, scale, levels) - squares(near, scale, levels)) / (far - near)
    };
    bins.iter().map(of).sum()
}

/// ∫₀ˣ (t − nearest point)² dt, the points being 0, scale, … levels · scale.
#[inline(always)]
fn squares(x: f64, scale: f64, levels: f64) -> f64 {
    let cells = (x / scale + 0.5).floor().min(levels);
    let rest = x - cells * scale;
    cells * scale.powi(3) / 12.0 + rest.powi(3) / 3.0
}

register!(
    Observer,
    "mse",
    MseSettings,
    Mse::new,
    "Clips symmetrically where the squared error of quantizing to given bits is smallest."
);

#[cfg(test)]
mod tests {
    use taq_core::stats::LogHistogram;

    use super::super::testing::{bells, observed};
    use super::*;

    /// Mean squared error of the values themselves.
    fn naive(values: &[f32], clip: f64, bits: u8) -> f64 {
        let levels = f64::from((1 << (bits - 1)) - 1);
        let scale = clip / levels;
        let off = |&v: &f32| {
            let v = f64::from(v);
            v - scale * (v / scale).round().clamp(-levels - 1.0, levels)
        };
        values.iter().map(|v| off(v).powi(2)).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_estimated_error_is_that_of_the_values() {
        let values = bells(50_000);
        let mut histogram = LogHistogram::default();
        histogram.add(&values);
        let bins: Vec<LogBin> = histogram.bins().collect();
        for bits in [2, 4, 8] {
            for clip in [3.0, 10.0, 25.0, 70.0] {
                let (found, expected) = (error(&bins, clip, bits) / 1e5, naive(&values, clip, bits));
                assert!((found / expected - 1.0).abs() < 0.02, "{bits} bits to {clip}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn no_other_range_is_much_better() {
        let values = bells(20_000);
        let largest = f64::from(values.iter().fold(0.0f32, |a, v| a.max(v.abs())));
        for bits in [3, 4, 6, 8] {
            let observer = || Box::new(Mse::new(MseSettings { bits }).unwrap());
            let range = observed(observer(), &[&values]);
            let clip = f64::from(range.absmax());
            let found = naive(&values, clip, bits);
            let least = (1..=1000)
                .map(|i| naive(&values, largest * f64::from(i) / 1000.0, bits))
                .fold(f64::INFINITY, f64::min);
            assert!(found <= 1.02 * least, "{bits} bits: {clip} has {found}, the best range {least}");
            // Few bits clip, and batches do not matter.
            assert!(bits > 4 || clip < 0.8 * largest, "{bits} bits: {clip} of {largest}");
            let parts: Vec<&[f32]> = values.chunks(2 * 123).collect();
            assert_eq!(observed(observer(), &parts), range);
        }
    }

    #[test]
    fn constant_layers_have_a_range() {
        for v in [0.0f32, -3.0, 2.5] {
            let range = observed(Box::new(Mse::new(MseSettings::default()).unwrap()), &[&[v; 8]]);
            assert!((range.absmax() - v.abs()).abs() <= 0.02 * v.abs(), "{v}: {range:?}");
        }
        assert!(Mse::new(MseSettings { bits: 1 }).is_err() && Mse::new(MseSettings { bits: 9 }).is_err());
    }
}
