//! Quantiles of the tensor: a few values at both ends are clipped so that all the others get finer steps.
//!
//! The ends are estimated from a logarithmic histogram of all values of all batches, whose bins are 1/64 of their
//! magnitude wide: the estimate is as close to the quantile of the values themselves, and does not depend on batches.

use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::stats::InputRange;
use taq_core::{Error, ObservedInput, Observer, Result, register};

/// Settings of `percentile`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PercentileSettings {
    /// Percent of the values that are at most the upper end, and percent that are at least the lower end: over 50, at most
    /// 100.
    #[schemars(range(min = 50.0, max = 100.0))]
    pub percentile: f64,
}

impl Default for PercentileSettings {
    fn default() -> Self {
        Self { percentile: 99.9 }
    }
}

/// The tensor: both quantiles. Channels: their extremes over all batches, within the quantiles.
#[derive(Debug)]
pub struct Percentile {
    share: f64,
}

impl Percentile {
    /// An observer that has seen nothing.
    pub fn new(settings: PercentileSettings) -> Result<Self> {
        let percent = settings.percentile;
        if !(percent > 50.0 && percent <= 100.0) {
            let reason = format!("percentile must be over 50 and at most 100, not {percent}");
            return Err(Error::settings("observer `percentile`", reason));
        }
        Ok(Self { share: percent / 100.0 })
    }
}

impl Observer for Percentile {
    fn wants_distribution(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>, all: &ObservedInput<'_>) -> Result<InputRange> {
        let end = |share| all.distribution.and_then(|d| d.quantile(share)).unwrap_or(0.0) as f32;
        let (low, high) = (end(1.0 - self.share), end(self.share));
        let range = InputRange::from(all.extremes.clone());
        // A bin may reach beyond the outermost value.
        let inside = |end: f32| end.max(range.low).min(range.high);
        let (low, high) = (inside(low), inside(high));
        Ok(range.within(low, high))
    }
}

register!(
    Observer,
    "percentile",
    PercentileSettings,
    Percentile::new,
    "Clips at a percentile of the tensor's values on both sides."
);

#[cfg(test)]
mod tests {
    use taq_core::stats::quantile;

    use super::super::testing::{bells, observed};
    use super::*;

    fn percentile(percentile: f64) -> Result<Box<dyn Observer>> {
        Ok(Box::new(Percentile::new(PercentileSettings { percentile })?))
    }

    #[test]
    fn ends_are_quantiles_of_the_values_whatever_the_batches() {
        let values = bells(20_000);
        for percent in [60.0, 99.0, 99.9, 99.99] {
            let whole = observed(percentile(percent).unwrap(), &[&values]);
            for (found, q) in [(whole.low, 1.0 - percent / 100.0), (whole.high, percent / 100.0)] {
                let expected = quantile(&values, q).unwrap();
                assert!((found / expected - 1.0).abs() < 1.0 / 60.0, "{percent}: {found}, not {expected}");
            }
            let parts: Vec<&[f32]> = values.chunks(2 * 77).collect();
            assert_eq!(observed(percentile(percent).unwrap(), &parts), whole);
            // The narrow channel keeps its extremes, the wide one is clipped.
            let narrow = values.iter().step_by(2).copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(whole.max[0], narrow.min(whole.high));
            assert_eq!((whole.min[1], whole.max[1]), (whole.low, whole.high));
        }
    }

    #[test]
    fn everything_is_between_the_extremes() {
        let values = bells(500);
        let range = observed(percentile(100.0).unwrap(), &[&values]);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!((range.high, range.max[1]), (high, high));
        // Constant layers have no width.
        for v in [0.0, -3.0, 2.5] {
            let range = observed(percentile(99.0).unwrap(), &[&[v; 8]]);
            assert_eq!((range.low, range.high, range.min, range.max), (v, v, vec![v; 2], vec![v; 2]));
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for wrong in [50.0, 100.1, -1.0, f64::NAN] {
            assert!(percentile(wrong).err().unwrap().to_string().contains("over 50 and at most 100"));
        }
    }
}
