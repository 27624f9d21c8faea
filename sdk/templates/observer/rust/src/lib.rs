//! An observer for taq as a native library: the range that clips best if values are distributed as Laplace's law says.
//!
//! A wide range clips little and has coarse steps. For values around μ with density exp(−|x − μ| / b) / 2b, the squared error
//! of rounding and clipping together is smallest at μ ± 9.89 b on a grid of eight bits (7.41 b with six, 5.03 b with four):
//! ACIQ (Banner et al., arXiv 1810.05723, table 1 and § 3). b is estimated from the variance, which is 2 b². Change
//! [`LaplaceClip::finish`] to have a method of your own.

use taq_plugin::{Error, InputRange, ObservationPoint, ObservedBatch, Observer, Plugin, Result};

/// Settings, as in `observer = { name = "laplace-clip", reach = 9.89 }`. Their comments are shown by
/// `taq plugins show laplace-clip --plugin ./observer.so`.
#[derive(Debug, Clone, Copy, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How far the range goes from the mean, in units of b: 9.89 for eight bits, 7.41 for six, 5.03 for four.
    pub reach: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reach: 9.89 }
    }
}

/// What was seen of one layer's input at one timestep.
pub struct LaplaceClip {
    reach: f64,
    count: f64,
    sum: f64,
    squares: f64,
    min: Vec<f32>,
    max: Vec<f32>,
}

impl Plugin for LaplaceClip {
    type Settings = Settings;
    const NAME: &'static str = "laplace-clip";
    const SUMMARY: &'static str = "The range that clips best if values are distributed as Laplace's law says (ACIQ).";

    fn new(settings: Settings) -> Result<Self> {
        let reach = settings.reach;
        if !(reach > 0.0 && reach.is_finite()) {
            return Err(Error::invalid(format!("reach = {reach}, expected a number above 0")));
        }
        Ok(Self { reach, count: 0.0, sum: 0.0, squares: 0.0, min: Vec::new(), max: Vec::new() })
    }
}

impl Observer for LaplaceClip {
    fn observe(&mut self, _: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
        self.count += batch.values.len() as f64;
        for &value in batch.values {
            self.sum += f64::from(value);
            self.squares += f64::from(value) * f64::from(value);
        }
        if self.min.is_empty() {
            (self.min, self.max) = (batch.min.to_vec(), batch.max.to_vec());
        }
        self.min.iter_mut().zip(batch.min).for_each(|(all, new)| *all = all.min(*new));
        self.max.iter_mut().zip(batch.max).for_each(|(all, new)| *all = all.max(*new));
        Ok(())
    }

    fn finish(&mut self) -> Result<InputRange> {
        let mean = self.sum / self.count;
        let b = ((self.squares / self.count - mean * mean).max(0.0) / 2.0).sqrt();
        // Where nothing lies, no step is spent.
        let smallest = self.min.iter().copied().fold(f32::INFINITY, f32::min);
        let largest = self.max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let low = ((mean - self.reach * b) as f32).clamp(smallest, largest);
        let high = ((mean + self.reach * b) as f32).clamp(low, largest);
        Ok(InputRange { min: self.min.clone(), max: self.max.clone(), low, high }.within(low, high))
    }
}

taq_plugin::export_plugin! { observers: [LaplaceClip] }

#[cfg(test)]
mod tests {
    use super::*;
    use taq_plugin::conformance::{ObserverUnderTest, assert_observer_conforms};
    use taq_plugin::taq_policy::testing::{Random, layer};
    use taq_plugin::{LayerSpec, Role};

    /// The range of some values of one channel, seen in batches.
    fn range(values: &[f32]) -> InputRange {
        let layer: LayerSpec = layer("block.img.mlp.fc2", Role::Fc2, 1, 1);
        let mut observer = LaplaceClip::new(Settings::default()).unwrap();
        for batch in values.chunks(1000) {
            let min = [batch.iter().copied().fold(f32::INFINITY, f32::min)];
            let max = [batch.iter().copied().fold(f32::NEG_INFINITY, f32::max)];
            let point = ObservationPoint { layer: &layer, step: 0, sigma: 1.0 };
            let batch = ObservedBatch { values: batch, channels: 1, min: &min, max: &max };
            observer.observe(&point, &batch).unwrap();
        }
        observer.finish().unwrap()
    }

    /// Values around 1, distributed as Laplace's law with this b says: its quantiles at random places.
    fn laplace(b: f32, count: usize) -> Vec<f32> {
        let mut random = Random::new(1);
        let quantile = |p: f32| 1.0 - b * p.signum() * (1.0 - 2.0 * p.abs()).ln();
        (0..count).map(|_| quantile(random.between(-0.4999999, 0.4999999))).collect()
    }

    #[test]
    fn conforms() {
        assert_observer_conforms(&ObserverUnderTest::of::<LaplaceClip>("{}"));
    }

    #[test]
    fn an_outlier_is_clipped_where_the_law_says() {
        let mut values = laplace(0.5, 200_000);
        values.extend([20.0, -20.0]);
        let range = range(&values);
        let (low, high) = (1.0 - 9.89 * 0.5, 1.0 + 9.89 * 0.5);
        assert!((range.low - low).abs() < 0.1 && (range.high - high).abs() < 0.1, "{range:?}");
        assert_eq!((range.min[0], range.max[0]), (range.low, range.high));
    }

    #[test]
    fn without_outliers_nothing_is_clipped() {
        let values: Vec<f32> = (0..100).map(|i| i as f32 / 10.0).collect();
        let range = range(&values);
        assert_eq!((range.low, range.high), (0.0, 9.9));
    }

    #[test]
    fn settings_are_checked() {
        let refused = LaplaceClip::new(Settings { reach: -1.0 }).err().unwrap();
        assert_eq!(refused.to_string(), "reach = -1, expected a number above 0");
    }
}
