//! What observing writes (docs/statistics.md).

use std::collections::BTreeMap;

use crate::artifacts::{RunFolder, write_json, write_npz};
use crate::stats::{InputRange, LayerScalars, LayerStats, StepIndex, quantile};
use crate::{LayerId, Result};

/// Writes a step's npz, then its index: the index says that the step is done.
pub(super) fn write_step(run: &RunFolder, step: usize, stats: BTreeMap<LayerId, LayerStats>) -> Result<()> {
    write_npz(&run.step_stats(step), |npz| {
        for (id, stats) in &stats {
            let name = |field: &str| format!("{}__{field}", id.array_prefix());
            let mut range = |prefix: &str, range: &InputRange| -> Result<()> {
                npz.add(&name(&format!("{prefix}_min")), &[range.min.len()], &range.min)?;
                npz.add(&name(&format!("{prefix}_max")), &[range.max.len()], &range.max)
            };
            range("avg", &stats.range)?;
            for (observer, ends) in &stats.beside {
                range(&observer.replace('-', "_"), ends)?;
            }
            if let Some(shift) = &stats.shift {
                npz.add(&name("shift"), &[shift.len()], shift)?;
            }
            if let Some(histogram) = &stats.histogram {
                npz.add(&name("hist_counts"), &[histogram.counts.len()], &histogram.counts)?;
                npz.add(&name("hist_edges"), &[histogram.edges.len()], &histogram.edges)?;
            }
        }
        Ok(())
    })?;
    let index = StepIndex(stats.iter().map(|(id, stats)| (id.clone(), scalars(stats))).collect());
    write_json(&run.step_index(step), &index)
}

fn scalars(stats: &LayerStats) -> LayerScalars {
    let value = |q| stats.histogram.as_ref().and_then(|h| h.quantile(q));
    let magnitude = |q| stats.histogram.as_ref().and_then(|h| h.magnitude_quantile(q));
    let (shift, range) = (stats.shift.as_deref(), &stats.range);
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, |a, v| a.max(v.abs()));
    let channels = range.channel_absmax();
    let over_channels = |q| quantile(&channels, q).unwrap_or(0.0);
    LayerScalars {
        n_batches: stats.batches,
        tensor_absmax: stats.absmax(),
        tensor_min: stats.tensor_min,
        tensor_max: stats.tensor_max,
        range_min: range.low,
        range_max: range.high,
        beside: stats.beside.iter().map(|(name, r)| (name.clone(), [r.low, r.high])).collect(),
        spike_fraction: spike_fraction(range),
        channel_p50: over_channels(0.5),
        channel_p99: over_channels(0.99),
        channel_max: over_channels(1.0),
        has_shift: shift.is_some(),
        has_hist: stats.histogram.is_some(),
        shift_absmax: shift.map(|s| largest(&mut s.iter().copied())),
        shifted_absmax: shift.map(|s| {
            let low = s.iter().zip(&range.min).map(|(s, v)| v - s);
            let high = s.iter().zip(&range.max).map(|(s, v)| v - s);
            largest(&mut low.chain(high))
        }),
        hist_p999: magnitude(0.999),
        hist_p99: magnitude(0.99),
        hist_p50: magnitude(0.5),
        hist_p01: value(0.01),
        hist_p001: value(0.001),
    }
}

/// Share of channels whose range is over 5 times the median channel's.
fn spike_fraction(range: &InputRange) -> f32 {
    let ranges: Vec<f32> = range.max.iter().zip(&range.min).map(|(high, low)| high - low).collect();
    let mut sorted = ranges.clone();
    sorted.sort_by(f32::total_cmp);
    let Some(&median) = sorted.get(sorted.len() / 2) else { return 0.0 };
    ranges.iter().filter(|&&r| r > 5.0 * median).count() as f32 / ranges.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_over_channels_are_those_of_numpy() {
        let stats = LayerStats {
            range: InputRange {
                min: vec![-1.0, -0.25, 0.0, -7.5, -0.5, -1.25],
                max: vec![0.5, 0.75, 0.0, 2.0, 2.5, 1.0],
                low: -8.0,
                high: 2.0,
            },
            tensor_min: -9.0,
            tensor_max: 3.0,
            batches: 2,
            ..LayerStats::default()
        };
        let found = scalars(&stats);
        // numpy.quantile of maximum(|avg_min|, |avg_max|) = [1, 0.75, 0, 7.5, 2.5, 1.25], numpy 2.4.6.
        assert_eq!((found.channel_p50, found.channel_p99, found.channel_max), (1.125, 7.25, 7.5));
        assert_eq!((found.tensor_absmax, found.n_batches, found.hist_p50), (9.0, 2, None));
        assert_eq!(found.range_absmax(), 8.0);
        // Ranges [1.5, 1, 0, 9.5, 3, 2.25], the median counted from above 2.25: none is over 11.25.
        assert_eq!(found.spike_fraction, 0.0);
    }
}
