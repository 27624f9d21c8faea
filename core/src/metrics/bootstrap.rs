//! How far a figure could be off because it was measured on these images and not on others.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::noise::Rng;
use crate::stats::quantile_f64;

/// Resamples behind an interval.
pub const RESAMPLES: usize = 2000;

/// Every interval begins with this seed, so that figures of the same images are resampled alike and a report is the
/// same on every machine.
const SEED: u64 = 0;

/// The two ends of an interval at 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// 2.5 % quantile over the resamples.
    pub low: f64,
    /// 97.5 % quantile over the resamples.
    pub high: f64,
}

/// The 95 % interval of a figure over images, by the percentile bootstrap (Efron, 1979): the figure of
/// [`RESAMPLES`] samples of as many images, drawn from these with replacement. `figure` is given the places of the
/// images drawn, 0 to below `images`. It says nothing of what the choice of noise or of the calibration set does, and
/// of a share that is 0 or 1 it has no width: no resample has an image that these have not.
///
/// `None` of fewer than two images, or if an end is not finite.
pub fn bootstrap(images: usize, figure: impl Fn(&[usize]) -> f64) -> Option<Interval> {
    if images < 2 {
        return None;
    }
    let mut rng = Rng::new(SEED);
    let figures: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<usize> = (0..images).map(|_| (rng.uniform() * images as f64) as usize).collect();
            figure(&drawn)
        })
        .collect();
    let interval = Interval { low: quantile_f64(&figures, 0.025)?, high: quantile_f64(&figures, 0.975)? };
    (interval.low.is_finite() && interval.high.is_finite()).then_some(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[f64], drawn: &[usize]) -> f64 {
        drawn.iter().map(|&at| values[at]).sum::<f64>() / drawn.len() as f64
    }

    #[test]
    fn agrees_with_numpy() {
        // r = numpy.random.RandomState(0); per resample (r.random_sample(n) * n).astype(int); numpy.quantile of the
        // figures; numpy 2.4.6.
        let errors: Vec<f64> = (0..12).map(|i| f64::from(i * i + 1) / 1000.0).collect();
        let near = |found: Option<Interval>, low: f64, high: f64| {
            let found = found.unwrap();
            assert!((found.low - low).abs() < 1e-12 && (found.high - high).abs() < 1e-12, "{found:?}");
        };
        near(bootstrap(12, |drawn| mean(&errors, drawn)), 0.02174791666666667, 0.06708333333333334);
        near(
            bootstrap(12, |drawn| -10.0 * mean(&errors, drawn).log10()),
            11.733853656797564,
            16.625824176935303,
        );
        let right = [1.0, 1.0, 0.0, 1.0, 1.0];
        near(bootstrap(5, |drawn| mean(&right, drawn)), 0.4, 1.0);
    }

    #[test]
    fn without_spread_there_is_no_width_and_of_one_image_nothing_is_said() {
        assert_eq!(bootstrap(9, |_| 2.0), Some(Interval { low: 2.0, high: 2.0 }));
        assert_eq!(bootstrap(1, |_| 2.0), None);
        assert_eq!(bootstrap(0, |_| 2.0), None);
        assert_eq!(bootstrap(4, |_| f64::INFINITY), None);
    }
}
