//! Running averages of per-batch, per-channel extremes (QDrop's `AvgMinMaxObserver`, wimh966/QDrop@0b0668a9),
//! the momentum shift of post-GELU inputs (TaQ-DiT, arXiv 2411.14172; 6xy-liu/Taq-DiT@749208e), and a histogram.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::stats::{Histogram, LayerStats};
use taq_core::{Error, ObservationPoint, Observer, Result, register};

/// Settings of `avg-minmax`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AvgMinMaxSettings {
    /// Weight of the past in the shift of post-GELU inputs, 0 to 1.
    pub shift_momentum: f32,
    /// Bins of the histogram; 0 for none.
    pub hist_bins: usize,
}

impl Default for AvgMinMaxSettings {
    fn default() -> Self {
        Self { shift_momentum: 0.95, hist_bins: 256 }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct AvgMinMax {
    settings: AvgMinMaxSettings,
    stats: LayerStats,
}

impl AvgMinMax {
    /// An observer that has seen nothing.
    pub fn new(settings: AvgMinMaxSettings) -> Result<Self> {
        if !(0.0..=1.0).contains(&settings.shift_momentum) {
            let reason = format!("shift_momentum must be between 0 and 1, not {}", settings.shift_momentum);
            return Err(Error::settings("observer `avg-minmax`", reason));
        }
        let stats =
            LayerStats { tensor_min: f32::INFINITY, tensor_max: f32::NEG_INFINITY, ..LayerStats::default() };
        Ok(Self { settings, stats })
    }
}

impl Observer for AvgMinMax {
    fn observe(&mut self, point: &ObservationPoint<'_>, x: &[f32], channels: usize) -> Result<()> {
        let (min, max) = channel_extremes(x, channels);
        let (low, high) = (fold(&min, f32::min), fold(&max, f32::max));
        // f32::min and max pass over NaN, a sum of squares does not.
        if !(low.is_finite() && high.is_finite()) || x.par_iter().any(|v| v.is_nan()) {
            return Err(Error::NotFinite {
                what: format!("the input of {} at step {}", point.layer.id, point.step),
            });
        }
        let stats = &mut self.stats;
        stats.batches += 1;
        stats.tensor_min = stats.tensor_min.min(low);
        stats.tensor_max = stats.tensor_max.max(high);
        average_in(&mut stats.avg_min, &min, stats.batches);
        average_in(&mut stats.avg_max, &max, stats.batches);
        if point.layer.post_gelu {
            let middle = min.iter().zip(&max).map(|(a, b)| (a + b) / 2.0);
            match &mut stats.shift {
                None => stats.shift = Some(middle.collect()),
                Some(shift) => {
                    let keep = self.settings.shift_momentum;
                    shift.iter_mut().zip(middle).for_each(|(s, m)| *s = keep * *s + (1.0 - keep) * m);
                }
            }
        }
        if self.settings.hist_bins > 0 {
            let bins = self.settings.hist_bins;
            stats.histogram.get_or_insert_with(|| Histogram::between(low, high, bins)).add(x);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<LayerStats> {
        Ok(self.stats)
    }
}

/// Minimum and maximum of each channel over all tokens.
fn channel_extremes(x: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    let empty = || (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
    x.par_chunks(channels * 64)
        .fold(empty, |(mut min, mut max), tokens| {
            for token in tokens.chunks_exact(channels) {
                for ((low, high), &v) in min.iter_mut().zip(&mut max).zip(token) {
                    *low = if v < *low { v } else { *low };
                    *high = if v > *high { v } else { *high };
                }
            }
            (min, max)
        })
        .reduce(empty, |(mut min, mut max), (other_min, other_max)| {
            min.iter_mut().zip(other_min).for_each(|(a, b)| *a = a.min(b));
            max.iter_mut().zip(other_max).for_each(|(a, b)| *a = a.max(b));
            (min, max)
        })
}

fn fold(values: &[f32], f: fn(f32, f32) -> f32) -> f32 {
    values.iter().copied().reduce(f).unwrap_or(0.0)
}

/// Running mean after `n` batches: m ← m + (v − m) / n.
fn average_in(mean: &mut Vec<f32>, values: &[f32], n: u64) {
    if n == 1 {
        mean.extend_from_slice(values);
    } else {
        mean.iter_mut().zip(values).for_each(|(m, v)| *m += (v - *m) / n as f32);
    }
}

register!(
    Observer,
    "avg-minmax",
    AvgMinMaxSettings,
    AvgMinMax::new,
    "Per-channel extremes averaged over batches, momentum shift of post-GELU inputs, histogram."
);

#[cfg(test)]
mod tests {
    use taq_core::{LayerSpec, Role, testing};

    use super::*;

    fn layer(post_gelu: bool) -> LayerSpec {
        testing::layer("mm0.img.mlp.fc2", if post_gelu { Role::Fc2 } else { Role::Fc1 }, 2, 2)
    }

    fn stats_of(batches: &[&[f32]], post_gelu: bool) -> LayerStats {
        let layer = layer(post_gelu);
        let point = ObservationPoint { layer: &layer, step: 3, sigma: 0.5 };
        let mut observer = AvgMinMax::new(AvgMinMaxSettings::default()).unwrap();
        for x in batches {
            observer.observe(&point, x, 2).unwrap();
        }
        Box::new(observer).finish().unwrap()
    }

    #[test]
    fn averages_extremes_over_batches() {
        let stats = stats_of(&[&[1.0, -1.0, 3.0, 5.0], &[2.0, 0.0, -1.0, 1.0]], true);
        assert_eq!(stats.avg_min, [0.0, -0.5]);
        assert_eq!(stats.avg_max, [2.5, 3.0]);
        assert_eq!((stats.tensor_min, stats.tensor_max, stats.batches), (-1.0, 5.0, 2));
        // Middles are (2, 2), then (0.5, 0.5): 0.95 · 2 + 0.05 · 0.5.
        for s in stats.shift.unwrap() {
            assert!((s - 1.925).abs() < 1e-6);
        }
    }

    #[test]
    fn histogram_counts_every_value() {
        let stats = stats_of(&[&[0.0, 1.0, 0.5, 0.25], &[-9.0, 9.0, 0.5, 0.5]], false);
        let histogram = stats.histogram.unwrap();
        assert_eq!(histogram.counts.iter().sum::<u64>(), 8);
        assert_eq!((histogram.edges[0], histogram.edges[256]), (0.0, 1.0));
        assert_eq!((histogram.counts[0], histogram.counts[255]), (2, 2));
        assert_eq!(histogram.counts[128], 3);
        assert!(stats.shift.is_none());
    }

    #[test]
    fn nan_is_named_by_layer_and_step() {
        let layer = layer(false);
        let point = ObservationPoint { layer: &layer, step: 3, sigma: 0.5 };
        let mut observer = AvgMinMax::new(AvgMinMaxSettings::default()).unwrap();
        let error = observer.observe(&point, &[0.0, f32::NAN], 2).unwrap_err().to_string();
        assert_eq!(error, "the input of mm0.img.mlp.fc2 at step 3 holds NaN or infinite values");
    }

    #[test]
    fn extremes_agree_with_a_plain_loop() {
        let channels = 7;
        let x: Vec<f32> = (0..channels * 1000).map(|i| ((i * 7919) % 1009) as f32 - 500.0).collect();
        let (min, max) = channel_extremes(&x, channels);
        for c in 0..channels {
            let column = || x.iter().skip(c).step_by(channels).copied();
            assert_eq!(min[c], column().fold(f32::INFINITY, f32::min));
            assert_eq!(max[c], column().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
