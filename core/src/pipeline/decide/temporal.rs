//! How layers change over time, and what a plan makes of it: `layer_temporal_analysis.json` (docs/statistics.md).
//!
//! After `analyze_activations_multitier.py` of sean-seowon-yi/time-aware-MLXSD-quantization (branch `pipeline`), with what
//! its branch of outlier channels adds. Where a shift helps is judged by the range that it takes away, which is what a grid
//! gains; the ancestor looked at how far it moves the mean.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::Session;
use crate::artifacts::{Document, Npz};
use crate::plan::QuantConfig;
use crate::stats::{Histogram, LayerScalars, StepIndex, quantile};
use crate::{LayerId, LayerSpec, Result};

/// A layer's range changes much if its largest is over so many times its smallest.
const VARIABLE: f32 = 2.0;
/// A shift is effective if it takes away more than this share of the range.
const EFFECTIVE: f64 = 0.1;
/// SmoothQuant: the largest channel stands out by so many times the 99 % quantile of the channels …
const SPIKE: f32 = 5.0;
/// … and fewer than this share of the channels stand out.
const FEW: f32 = 0.05;
/// A channel is an outlier if its range is over so many times the median channel's.
const OUTLIER: f32 = 2.5;

/// One layer over all timesteps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerOverTime {
    /// Largest magnitude of the layer's input, averaged over the timesteps.
    pub mean_absmax: f32,
    /// The same, the smallest of all timesteps.
    pub min_absmax: f32,
    /// The same, the largest of all timesteps.
    pub max_absmax: f32,
    /// `max_absmax` over `min_absmax`, which counts as at least a millionth of it; 1 where all is 0.
    pub variability_ratio: f32,
    /// Timesteps at which the plan gives the input each width.
    pub steps_by_bits: BTreeMap<u8, usize>,
    /// Share of the timesteps with four bits.
    pub a4_fraction: f64,
    /// Share of the timesteps with six bits.
    pub a6_fraction: f64,
    /// Share of the timesteps with eight bits.
    pub a8_fraction: f64,
}

/// What the shift does for one post-GELU layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShiftEffect {
    /// Share of the range's magnitude that the shift takes away, 1 − `shifted_absmax` / `channel_max`, averaged over the
    /// timesteps; negative where it does harm.
    pub mean_shift_benefit: f64,
    /// Skewness of the values (third standardized moment of the histogram, each bin at its middle), averaged over the
    /// timesteps; absent without histograms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_skewness: Option<f64>,
    /// Whether the benefit is over 0.1.
    pub effective: bool,
}

/// A layer whose range changes much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VariableLayer {
    /// The layer.
    pub layer: LayerId,
    /// Its `variability_ratio`.
    pub ratio: f32,
}

/// A layer that the plan gives different widths at different timesteps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Switcher {
    /// The layer.
    pub layer: LayerId,
    /// Timesteps with four bits, as a share of all.
    pub a4_fraction: f64,
    /// Bits averaged over the timesteps.
    pub average_bits: f64,
}

/// A layer in which few channels stand out so far that their magnitude had better move into the weights (SmoothQuant, arXiv
/// 2211.10438).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SmoothQuantCandidate {
    /// The layer.
    pub layer: LayerId,
    /// The timesteps at which it is one.
    pub steps: Vec<usize>,
    /// The largest channel over the 99 % quantile of the channels, at the timestep where that is most.
    pub spike_ratio: f32,
    /// Share of the channels whose range is over 5 times the median channel's, at the same timestep.
    pub spike_fraction: f32,
    /// What each channel would be divided by: its magnitude over the mean of all, to the power ½, at the same timestep. A
    /// channel of zeros is left alone (1).
    pub smoothquant_scale: Vec<f32>,
}

/// Channels whose range is over 2.5 times the median channel's, at the middle timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutlierChannels {
    /// The channels.
    pub outlier_indices: Vec<usize>,
    /// What each channel's step size would be multiplied by: 1, and for outliers one common whole number, `absmax_outlier` /
    /// `absmax_normal` rounded, at least 1.
    pub multiplier_vector: Vec<u32>,
    /// Largest magnitude of the channels that are no outliers.
    pub absmax_normal: f32,
    /// Largest magnitude of the outliers.
    pub absmax_outlier: f32,
}

/// `layer_temporal_analysis.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemporalAnalysis {
    /// Always [`TemporalAnalysis::FORMAT`].
    pub format: String,
    /// Fingerprint of the model.
    pub model: String,
    /// The policy whose plan it looks at.
    pub policy: String,
    /// Noise level of each timestep.
    pub sigma_map: BTreeMap<usize, f32>,
    /// Every layer over all timesteps.
    pub layer_stats: BTreeMap<LayerId, LayerOverTime>,
    /// What the shift does for each layer that has one.
    pub shift_analysis: BTreeMap<LayerId, ShiftEffect>,
    /// Layers whose `variability_ratio` is over 2, the most variable first.
    pub high_variability: Vec<VariableLayer>,
    /// Layers with more than one width, the fewest bits first.
    pub switchers: Vec<Switcher>,
    /// Layers with eight bits at every timestep.
    pub always_a8: Vec<LayerId>,
    /// Layers with six bits at every timestep.
    pub always_a6: Vec<LayerId>,
    /// Layers with four bits at every timestep.
    pub always_a4: Vec<LayerId>,
    /// Where SmoothQuant could help; post-GELU layers have their shift instead.
    pub smoothquant_candidates: Vec<SmoothQuantCandidate>,
    /// Layers with outlier channels.
    pub outlier_config: BTreeMap<LayerId, OutlierChannels>,
}

impl Document for TemporalAnalysis {
    /// Version 4 is the ancestor's.
    const FORMAT: &'static str = "layer_temporal_analysis_v5";
    const KIND: &'static str = "temporal analysis";
}

/// Looks at the statistics of all timesteps, and at what the plan made of them.
pub(super) fn analyse(
    session: &Session,
    steps: &BTreeMap<usize, StepIndex>,
    config: &QuantConfig,
) -> Result<TemporalAnalysis> {
    let layers: Vec<&LayerSpec> = session.model.spec().layers().collect();
    let middle = steps.keys().nth(steps.len() / 2).copied();
    let mut skews: BTreeMap<&LayerId, Vec<f64>> = BTreeMap::new();
    let mut candidates: Vec<Candidate> = layers.iter().filter_map(|l| Candidate::of(l, steps)).collect();
    let mut outlier_config = BTreeMap::new();
    for (&step, scalars) in steps {
        let npz = Npz::open(&session.run.step_stats(step))?;
        for layer in &layers {
            let seen = &scalars.0[&layer.id];
            let name = |field: &str| format!("{}__{field}", layer.id.array_prefix());
            if seen.has_shift && seen.has_hist {
                let counts: Vec<u64> = npz.read(&name("hist_counts"))?.data;
                let edges = npz.vec(&name("hist_edges"), &[counts.len() + 1])?;
                let skew = skewness(&Histogram { counts, edges });
                skews.entry(&layer.id).or_default().extend(skew);
            }
            let candidate = candidates.iter_mut().find(|c| c.found.layer == layer.id && c.at == step);
            if candidate.is_none() && middle != Some(step) {
                continue;
            }
            let low: Vec<f32> = npz.vec(&name("avg_min"), &[layer.in_features])?;
            let high: Vec<f32> = npz.vec(&name("avg_max"), &[layer.in_features])?;
            if let Some(candidate) = candidate {
                candidate.found.smoothquant_scale = smoothing(&low, &high);
            }
            if middle == Some(step)
                && let Some(outliers) = outliers(&low, &high)
            {
                outlier_config.insert(layer.id.clone(), outliers);
            }
        }
    }
    let layer_stats: BTreeMap<_, _> =
        layers.iter().map(|l| (l.id.clone(), over_time(&l.id, steps, config))).collect();
    let shifted = layers.iter().filter_map(|l| Some((l, shift_benefit(&l.id, steps)?)));
    let shift_analysis = shifted.map(|(l, benefit)| {
        let skew = skews.get(&l.id).map(|all| mean(all.iter().copied()));
        let effect =
            ShiftEffect { mean_shift_benefit: benefit, mean_skewness: skew, effective: benefit > EFFECTIVE };
        (l.id.clone(), effect)
    });
    let always = |bits: u8| {
        let all = |l: &&&LayerSpec| layer_stats[&l.id].steps_by_bits.keys().eq([&bits]);
        layers.iter().filter(all).map(|l| l.id.clone()).collect()
    };
    Ok(TemporalAnalysis {
        format: TemporalAnalysis::FORMAT.to_owned(),
        model: config.model.clone(),
        policy: config.policy.clone(),
        sigma_map: config.sigma_map.clone(),
        shift_analysis: shift_analysis.collect(),
        high_variability: high_variability(&layer_stats),
        switchers: switchers(&layer_stats),
        always_a8: always(8),
        always_a6: always(6),
        always_a4: always(4),
        smoothquant_candidates: candidates.into_iter().map(|c| c.found).collect(),
        outlier_config,
        layer_stats,
    })
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

fn over_time(id: &LayerId, steps: &BTreeMap<usize, StepIndex>, config: &QuantConfig) -> LayerOverTime {
    let absmax: Vec<f32> = steps.values().map(|s| s.0[id].tensor_absmax).collect();
    let (low, high) = absmax.iter().fold((f32::INFINITY, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let mut steps_by_bits = BTreeMap::new();
    for grids in config.per_timestep.values() {
        *steps_by_bits.entry(grids[id].bits).or_insert(0) += 1;
    }
    let share = |bits: u8| {
        steps_by_bits.get(&bits).copied().unwrap_or(0) as f64 / config.per_timestep.len().max(1) as f64
    };
    LayerOverTime {
        mean_absmax: mean(absmax.iter().map(|&v| f64::from(v))) as f32,
        min_absmax: low,
        max_absmax: high,
        variability_ratio: if high > 0.0 { high / low.max(high * 1e-6) } else { 1.0 },
        a4_fraction: share(4),
        a6_fraction: share(6),
        a8_fraction: share(8),
        steps_by_bits,
    }
}

/// `None` if the layer has no shift.
fn shift_benefit(id: &LayerId, steps: &BTreeMap<usize, StepIndex>) -> Option<f64> {
    let benefit = |seen: &LayerScalars| {
        let (before, after) = (f64::from(seen.channel_max), f64::from(seen.shifted_absmax?));
        Some(if before > 0.0 { 1.0 - after / before } else { 0.0 })
    };
    let all: Vec<f64> = steps.values().map(|s| benefit(&s.0[id])).collect::<Option<_>>()?;
    Some(mean(all.into_iter()))
}

fn high_variability(layers: &BTreeMap<LayerId, LayerOverTime>) -> Vec<VariableLayer> {
    let variable = layers.iter().filter(|(_, l)| l.variability_ratio > VARIABLE);
    let mut found: Vec<VariableLayer> =
        variable.map(|(id, l)| VariableLayer { layer: id.clone(), ratio: l.variability_ratio }).collect();
    found.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    found
}

fn switchers(layers: &BTreeMap<LayerId, LayerOverTime>) -> Vec<Switcher> {
    let average = |l: &LayerOverTime| {
        let steps: usize = l.steps_by_bits.values().sum();
        let bits: usize = l.steps_by_bits.iter().map(|(&bits, n)| usize::from(bits) * n).sum();
        bits as f64 / steps.max(1) as f64
    };
    let several = layers.iter().filter(|(_, l)| l.steps_by_bits.len() > 1);
    let mut found: Vec<Switcher> = several
        .map(|(id, l)| Switcher { layer: id.clone(), a4_fraction: l.a4_fraction, average_bits: average(l) })
        .collect();
    found.sort_by(|a, b| a.average_bits.total_cmp(&b.average_bits));
    found
}

/// Third standardized moment, each bin at its middle; `None` if all values are in one bin.
fn skewness(histogram: &Histogram) -> Option<f64> {
    let total: u64 = histogram.counts.iter().sum();
    let middles = histogram.edges.windows(2).map(|e| (f64::from(e[0]) + f64::from(e[1])) / 2.0);
    let bins: Vec<(f64, f64)> =
        middles.zip(&histogram.counts).map(|(m, &n)| (m, n as f64 / total.max(1) as f64)).collect();
    let mean: f64 = bins.iter().map(|(m, p)| m * p).sum();
    let moment = |power: i32| bins.iter().map(|(m, p)| (m - mean).powi(power) * p).sum::<f64>();
    let one_bin = histogram.counts.iter().filter(|&&n| n > 0).count() < 2;
    (!one_bin).then(|| moment(3) / moment(2).powf(1.5))
}

/// A candidate for SmoothQuant, and the step at which it stands out most.
struct Candidate {
    found: SmoothQuantCandidate,
    at: usize,
}

impl Candidate {
    fn of(layer: &LayerSpec, steps: &BTreeMap<usize, StepIndex>) -> Option<Self> {
        if layer.post_gelu {
            return None;
        }
        let ratio = |seen: &LayerScalars| seen.channel_max / seen.channel_p99;
        let spiky =
            |seen: &LayerScalars| seen.spike_fraction < FEW && seen.channel_p99 > 0.0 && ratio(seen) > SPIKE;
        let at: Vec<(usize, &LayerScalars)> =
            steps.iter().map(|(&k, s)| (k, &s.0[&layer.id])).filter(|(_, seen)| spiky(seen)).collect();
        let (step, seen) = at.iter().max_by(|a, b| ratio(a.1).total_cmp(&ratio(b.1)))?;
        let found = SmoothQuantCandidate {
            layer: layer.id.clone(),
            steps: at.iter().map(|(step, _)| *step).collect(),
            spike_ratio: ratio(seen),
            spike_fraction: seen.spike_fraction,
            smoothquant_scale: Vec::new(),
        };
        Some(Self { found, at: *step })
    }
}

/// Magnitudes over their mean, to the power ½.
fn smoothing(low: &[f32], high: &[f32]) -> Vec<f32> {
    let absmax: Vec<f64> = low.iter().zip(high).map(|(l, h)| f64::from(l.abs().max(h.abs()))).collect();
    let mean = mean(absmax.iter().copied());
    absmax.iter().map(|&a| if a > 0.0 { (a / mean).sqrt() as f32 } else { 1.0 }).collect()
}

/// `None` if no channel is an outlier.
fn outliers(low: &[f32], high: &[f32]) -> Option<OutlierChannels> {
    let ranges: Vec<f32> = low.iter().zip(high).map(|(l, h)| h - l).collect();
    let limit = OUTLIER * quantile(&ranges, 0.5)?;
    let outlier_indices: Vec<usize> = (0..ranges.len()).filter(|&c| ranges[c] > limit).collect();
    if outlier_indices.is_empty() {
        return None;
    }
    let (mut absmax_normal, mut absmax_outlier) = (0.0f32, 0.0f32);
    for (c, range) in ranges.iter().enumerate() {
        let absmax = low[c].abs().max(high[c].abs());
        let of = if *range > limit { &mut absmax_outlier } else { &mut absmax_normal };
        *of = of.max(absmax);
    }
    let multiplier = match f64::from(absmax_outlier) / f64::from(absmax_normal) {
        ratio if ratio.is_finite() => (ratio.round() as u32).max(1),
        // All others are 0: there is no ratio.
        _ => 1,
    };
    let mut multiplier_vector = vec![1; ranges.len()];
    outlier_indices.iter().for_each(|&c| multiplier_vector[c] = multiplier);
    Some(OutlierChannels { outlier_indices, multiplier_vector, absmax_normal, absmax_outlier })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skewness_is_that_of_scipy() {
        let histogram = Histogram { counts: vec![4, 2, 0, 1, 3], edges: vec![-1.0, 0.0, 1.0, 2.0, 4.0, 8.0] };
        // scipy.stats.skew of [-0.5] * 4 + [0.5] * 2 + [3] + [6] * 3, scipy 1.16: m3 / m2 ** 1.5.
        let values = [[-0.5; 4].as_slice(), &[0.5; 2], &[3.0], &[6.0; 3]].concat();
        let mean = values.iter().sum::<f64>() / 10.0;
        let moment = |k| values.iter().map(|v| (v - mean).powi(k)).sum::<f64>() / 10.0;
        let expected = moment(3) / moment(2).powf(1.5);
        assert!((skewness(&histogram).unwrap() - expected).abs() < 1e-12);
        assert_eq!(skewness(&Histogram { counts: vec![0, 7], edges: vec![0.0, 1.0, 2.0] }), None);
    }

    #[test]
    fn outliers_are_over_two_and_a_half_medians() {
        // Ranges 2, 2, 5, 5.5, 2: the median is 2, the limit 5.
        let (low, high) = ([-1.0, -0.5, -2.0, -5.0, 0.0], [1.0, 1.5, 3.0, 0.5, 2.0]);
        let found = outliers(&low, &high).unwrap();
        assert_eq!(found.outlier_indices, [3]);
        assert_eq!((found.absmax_normal, found.absmax_outlier), (3.0, 5.0));
        // 5 / 3 rounded.
        assert_eq!(found.multiplier_vector, [1, 1, 1, 2, 1]);
        assert!(outliers(&[0.0; 4], &[1.0; 4]).is_none() && outliers(&[0.0; 4], &[0.0; 4]).is_none());
        // Where all others are 0, there is nothing to multiply.
        let lonely = outliers(&[0.0; 3], &[0.0, 7.0, 0.0]).unwrap();
        assert_eq!((lonely.outlier_indices, lonely.multiplier_vector), (vec![1], vec![1, 1, 1]));
    }

    #[test]
    fn smoothing_is_the_root_of_the_share() {
        assert_eq!(
            smoothing(&[-4.0, 0.0, -1.0, 0.0], &[1.0, 1.0, 0.5, 0.0]),
            [(4.0f32 / 1.5).sqrt(), (1.0f32 / 1.5).sqrt(), (1.0f32 / 1.5).sqrt(), 1.0]
        );
    }

    #[test]
    fn candidates_are_layers_with_few_channels_far_out() {
        let seen = |p99: f32, max: f32, fraction: f32| LayerScalars {
            channel_p99: p99,
            channel_max: max,
            spike_fraction: fraction,
            ..LayerScalars::default()
        };
        let steps: BTreeMap<usize, StepIndex> = [
            seen(1.0, 5.5, 0.01),
            seen(1.0, 5.0, 0.01),
            seen(0.5, 4.0, 0.04),
            seen(0.0, 4.0, 0.01),
            seen(1.0, 90.0, 0.05),
        ]
        .into_iter()
        .enumerate()
        .map(|(step, seen)| (step, StepIndex(BTreeMap::from([("a".into(), seen)]))))
        .collect();
        let found = Candidate::of(&crate::testing::layer("a", crate::Role::Q, 4, 4), &steps).unwrap();
        assert_eq!((found.at, found.found.steps.as_slice()), (2, [0, 2].as_slice()));
        assert_eq!((found.found.spike_ratio, found.found.spike_fraction), (8.0, 0.04));
        let post_gelu = crate::testing::layer("a", crate::Role::Fc2, 4, 4);
        assert!(Candidate::of(&post_gelu, &steps).is_none());
    }

    #[test]
    fn layers_over_time() {
        let layer = |ratio: f32, bits: &[(u8, usize)]| LayerOverTime {
            mean_absmax: 1.0,
            min_absmax: 1.0,
            max_absmax: ratio,
            variability_ratio: ratio,
            steps_by_bits: bits.iter().copied().collect(),
            a4_fraction: 0.0,
            a6_fraction: 0.0,
            a8_fraction: 0.0,
        };
        let layers = BTreeMap::from([
            ("a".into(), layer(2.0, &[(8, 3)])),
            ("b".into(), layer(2.5, &[(4, 1), (8, 2)])),
            ("c".into(), layer(7.0, &[(4, 2), (6, 1)])),
        ]);
        let names: Vec<_> = high_variability(&layers).into_iter().map(|l| l.layer).collect();
        assert_eq!(names, ["c".into(), "b".into()]);
        let found = switchers(&layers);
        assert_eq!(found.iter().map(|s| s.layer.as_str()).collect::<Vec<_>>(), ["c", "b"]);
        assert!((found[0].average_bits - 14.0 / 3.0).abs() < 1e-12);
    }
}
