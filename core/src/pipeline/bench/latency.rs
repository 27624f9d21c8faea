//! Seconds an image from what batches took.

use super::document::Latency;
use crate::pipeline::scores::BatchTime;
use crate::stats::quantile_f64;

/// Over the full batches, or over all if none is full.
pub(super) fn latency(batches: &[BatchTime], batch_size: usize, warm_up: usize) -> Latency {
    let full: Vec<&BatchTime> = batches.iter().filter(|b| b.images == batch_size).collect();
    let chosen = if full.is_empty() { batches.iter().collect() } else { full };
    let each: Vec<f64> = chosen.iter().map(|b| b.seconds / b.images.max(1) as f64).collect();
    let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
    let variance = each.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / each.len().max(1) as f64;
    let quantile = |q| quantile_f64(&each, q).unwrap_or(0.0);
    Latency {
        mean,
        std: variance.sqrt(),
        p50: quantile(0.5),
        p95: quantile(0.95),
        min: quantile(0.0),
        max: quantile(1.0),
        batches: each.len(),
        warm_up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_numpy_over_full_batches() {
        let batch = |images, seconds| BatchTime { images, seconds };
        let times = [batch(2, 1.0), batch(2, 1.5), batch(2, 0.8), batch(2, 4.0), batch(1, 9.0)];
        let found = latency(&times, 2, 3);
        // numpy of [0.5, 0.75, 0.4, 2.0]: mean, std, quantile.
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{found:?}");
        near(found.mean, 0.9125);
        near(found.std, 0.6406783514369749);
        near(found.p50, 0.625);
        near(found.p95, 1.8125);
        assert_eq!((found.min, found.max, found.batches, found.warm_up), (0.4, 2.0, 4, 3));
        // The only batch there is counts, full or not.
        assert_eq!(latency(&times[4..], 2, 0).mean, 9.0);
    }
}
