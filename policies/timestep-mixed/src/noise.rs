//! What quantizing an input does, by layer, timestep, width, and where the grid clips.
//!
//! A symmetric grid of b bits over ±c has steps of Δ = c/q with q = 2^(b-1) - 1. Rounding adds noise of power Δ²/12; what
//! lies beyond c adds the square of its distance (after ACIQ, Banner et al., NeurIPS 2019, with quantiles in place of a fitted
//! distribution). Beyond the 99 % quantile, the share of magnitudes that reach farther is taken to fall exponentially from
//! one known quantile to the next; at the largest magnitude one in a million is left. What counts is the noise over the
//! signal's power σ², where σ is the 99 % quantile over 2.576, as of a normal distribution: a linear layer hands both on alike.
//!
//! Where sensitivities were measured, they say how large a layer's error is at each width, and the noise only how it is
//! shared out over the timesteps. Widths between measured ones are interpolated in the logarithm, beyond them the error falls
//! by four for each bit.

use std::collections::BTreeMap;

use taq_policy::{LayerColumns, LayerSpec, PolicyError, PolicyRequest, ScaleSource, Timestep};

use crate::settings::{Settings, Weighting};

/// The 99 % quantile of the magnitudes of a normal distribution, in standard deviations.
const P99_IN_SIGMA: f64 = 2.576;
/// Share of the magnitudes that reach beyond the largest one that was seen.
const BEYOND_LARGEST: f64 = 1e-6;

/// Predicted errors of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerErrors {
    /// Where the grid may clip, with the error at each timestep and width: `[timesteps][widths]`.
    pub(crate) sources: Vec<(ScaleSource, Vec<Vec<f64>>)>,
}

/// One entry per layer.
pub(crate) fn errors(
    request: &PolicyRequest,
    settings: &Settings,
    widths: &[u8],
) -> Result<Vec<LayerErrors>, PolicyError> {
    let weights = timestep_weights(&request.timesteps, settings.weighting);
    let sensitivities = if settings.use_sensitivities { measured(request)? } else { BTreeMap::new() };
    let of = |(layer, columns): (&LayerSpec, &LayerColumns)| -> Result<LayerErrors, PolicyError> {
        let shifted = settings.shift_post_gelu && layer.post_gelu && !columns.shifted_absmax.is_empty();
        let reach = if shifted { &columns.shifted_absmax } else { &columns.absmax };
        let mut sources = vec![(ScaleSource::Absmax, reach)];
        // Quantiles are of the input before its shift.
        if settings.clip && !shifted {
            sources.extend([(ScaleSource::P999, &columns.p999), (ScaleSource::P99, &columns.p99)]);
        }
        let by_step = |clip: &Vec<f32>| -> Vec<Vec<f64>> {
            let at = |step: usize| {
                let tail = Tail {
                    p99: columns.p99[step].into(),
                    p999: columns.p999[step].into(),
                    largest: reach[step].into(),
                };
                widths.iter().map(|&bits| weights[step] * tail.noise(clip[step].into(), bits)).collect()
            };
            (0..weights.len()).map(at).collect()
        };
        let mut errors: Vec<(ScaleSource, Vec<Vec<f64>>)> =
            sources.into_iter().map(|(source, clip)| (source, by_step(clip))).collect();
        if let Some(points) = sensitivities.get(layer.id.as_str()) {
            scale_to(&mut errors, points, widths);
        }
        if errors.iter().flat_map(|(_, steps)| steps).flatten().any(|error| !error.is_finite()) {
            return Err(PolicyError::new(format!("the statistics of {} are not finite", layer.id)));
        }
        Ok(LayerErrors { sources: errors })
    };
    request.measured()?.into_iter().map(of).collect()
}

/// Quantiles of the magnitudes of one input at one timestep.
struct Tail {
    p99: f64,
    p999: f64,
    largest: f64,
}

impl Tail {
    /// Noise over signal on a grid of `bits` bits that clips at `clip`. 0 for an input of nothing but zeros.
    fn noise(&self, clip: f64, bits: u8) -> f64 {
        let sigma = self.p99 / P99_IN_SIGMA;
        if sigma <= 0.0 {
            return 0.0;
        }
        let levels = f64::from((1u16 << (bits - 1)) - 1);
        let step = clip / levels;
        (step * step / 12.0 + self.clipped(clip)) / (sigma * sigma)
    }

    /// Mean square of what lies beyond `clip`, which is one of the three.
    fn clipped(&self, clip: f64) -> f64 {
        let pieces = [(self.p99, self.p999, 0.01, 0.001), (self.p999, self.largest, 0.001, BEYOND_LARGEST)];
        pieces
            .into_iter()
            .filter(|&(from, to, ..)| from >= clip && to > from)
            .map(|(from, to, share, left)| {
                // ∫ 2 (x − clip) S(x) dx for a share S that falls exponentially from `share` to `left`.
                let length = to - from;
                let rate = (share / left).ln() / length;
                let fallen = left / share;
                let first = (from - clip) * (1.0 - fallen) / rate;
                let second = (1.0 - fallen * (1.0 + rate * length)) / (rate * rate);
                2.0 * share * (first + second)
            })
            .sum()
    }
}

/// Weights of the timesteps; the last one falls to 0. All alike if the noise level never falls.
fn timestep_weights(timesteps: &[Timestep], weighting: Weighting) -> Vec<f64> {
    let next = timesteps.iter().skip(1).map(|t| f64::from(t.sigma)).chain([0.0]);
    let fall: Vec<f64> =
        timesteps.iter().zip(next).map(|(t, next)| (f64::from(t.sigma) - next).abs()).collect();
    if weighting == Weighting::Uniform || fall.iter().all(|&fall| fall == 0.0) {
        return vec![1.0; fall.len()];
    }
    match weighting {
        Weighting::SquaredFall => fall.iter().map(|fall| fall * fall).collect(),
        _ => fall,
    }
}

/// Measured errors of the inputs, by layer and width.
fn measured(request: &PolicyRequest) -> Result<BTreeMap<&str, BTreeMap<u8, f64>>, PolicyError> {
    let mut found: BTreeMap<&str, BTreeMap<u8, f64>> = BTreeMap::new();
    for s in request.sensitivities.iter().filter(|s| !s.weight) {
        if !(s.error.is_finite() && s.error >= 0.0) {
            return Err(PolicyError::new(format!(
                "sensitivities: the input of {} at {} bits has the error {}",
                s.id, s.bits, s.error
            )));
        }
        found.entry(s.id.as_str()).or_default().insert(s.bits, f64::from(s.error));
    }
    if let Some(layer) =
        request.layers.iter().find(|l| !found.is_empty() && !found.contains_key(l.id.as_str()))
    {
        return Err(PolicyError::new(format!("sensitivities: the input of {} was not measured", layer.id)));
    }
    Ok(found)
}

/// Makes the errors of a grid that clips nothing add up to what was measured, and those of the others by the same factor.
fn scale_to(errors: &mut [(ScaleSource, Vec<Vec<f64>>)], points: &BTreeMap<u8, f64>, widths: &[u8]) {
    let factors: Vec<f64> = widths
        .iter()
        .enumerate()
        .map(|(at, &bits)| {
            let total: f64 = errors[0].1.iter().map(|step| step[at]).sum();
            if total > 0.0 { at_width(points, bits) / total } else { 0.0 }
        })
        .collect();
    for step in errors.iter_mut().flat_map(|(_, steps)| steps) {
        step.iter_mut().zip(&factors).for_each(|(error, factor)| *error *= factor);
    }
}

/// The error at a width that may not have been measured.
fn at_width(points: &BTreeMap<u8, f64>, bits: u8) -> f64 {
    let below = points.range(..=bits).next_back();
    let above = points.range(bits..).next();
    let distance = |a: u8, b: u8| f64::from(b) - f64::from(a);
    match (below, above) {
        (Some((&low, &at_low)), Some((&high, &at_high))) if low < high => {
            if at_low == 0.0 || at_high == 0.0 {
                return at_low;
            }
            let share = distance(low, bits) / distance(low, high);
            (at_low.ln() * (1.0 - share) + at_high.ln() * share).exp()
        }
        (Some((&low, &error)), _) => error * 0.25_f64.powf(distance(low, bits)),
        (None, Some((&high, &error))) => error * 4.0_f64.powf(distance(bits, high)),
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of an input whose tail is the assumed one: the share beyond x, inverted.
    fn magnitudes(tail: &Tail, count: usize) -> impl Iterator<Item = f64> + '_ {
        (0..count).map(move |i| {
            let share = (i as f64 + 0.5) / count as f64;
            if share > 0.01 {
                return 0.0; // below the 99 % quantile: never clipped
            }
            let piece = |from: f64, to: f64, high: f64, low: f64| {
                from + (to - from) * (high / share).ln() / (high / low).ln()
            };
            if share > 0.001 {
                piece(tail.p99, tail.p999, 0.01, 0.001)
            } else {
                piece(tail.p999, tail.largest, 0.001, BEYOND_LARGEST).min(tail.largest)
            }
        })
    }

    #[test]
    fn clipped_power_is_that_of_samples() {
        let tail = Tail { p99: 2.0, p999: 3.0, largest: 9.0 };
        for clip in [tail.p99, tail.p999] {
            let count = 4_000_000;
            let naive =
                magnitudes(&tail, count).map(|x| (x - clip).max(0.0).powi(2)).sum::<f64>() / count as f64;
            let found = tail.clipped(clip);
            assert!((found - naive).abs() < 2e-3 * naive, "{found} of {naive}");
        }
        assert_eq!(tail.clipped(tail.largest), 0.0);
    }

    #[test]
    fn few_bits_clip_and_many_do_not() {
        let tail = Tail { p99: 1.0, p999: 1.5, largest: 12.0 };
        let best = |bits: u8| {
            let noise = |clip: &&f64| tail.noise(**clip, bits);
            [tail.p99, tail.p999, tail.largest]
                .iter()
                .min_by(|a, b| noise(a).total_cmp(&noise(b)))
                .copied()
                .unwrap()
        };
        assert_eq!((best(4), best(8)), (1.5, 12.0));
        assert_eq!(Tail { p99: 0.0, p999: 0.0, largest: 0.0 }.noise(0.0, 4), 0.0);
    }

    #[test]
    fn errors_between_and_beyond_measured_widths() {
        let points = BTreeMap::from([(4, 1.6e-1), (6, 1e-3), (8, 1e-5)]);
        let near =
            |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        near(at_width(&points, 6), 1e-3);
        near(at_width(&points, 7), 1e-4);
        near(at_width(&points, 3), 6.4e-1);
        near(at_width(&BTreeMap::from([(6, 1.0)]), 8), 0.0625);
        near(at_width(&BTreeMap::from([(4, 0.5), (8, 0.0)]), 6), 0.5);
    }
}
