//! What observing leaves behind: statistics of every layer's input at every timestep.
//!
//! On disk (`activations/`): `layer_statistics.json` is a [`StatisticsIndex`]; for each step k,
//! `timestep_stats/step_{k}.npz` holds the per-channel vectors and histograms and
//! `timestep_stats/step_{k}_index.json` a [`StepIndex`] with the scalars.

mod channels;
mod quantile;

use std::collections::BTreeMap;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LayerId;
pub use channels::{ChannelProfile, PROFILE_BINS, PROFILE_REACH, profile_edges};
pub use quantile::{quantile, quantile_f64};

/// The `format` of [`StatisticsIndex`].
pub const STATISTICS_FORMAT: &str = "per_timestep_npz_v2";

/// Counts of values in equal bins; values beyond the edges count in the outermost bins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// One count a bin.
    pub counts: Vec<u64>,
    /// `counts.len() + 1` edges, rising.
    pub edges: Vec<f32>,
}

impl Histogram {
    /// Empty, with `bins` equal bins from `low` to `high` (a hair of width if the two are equal).
    pub fn between(low: f32, high: f32, bins: usize) -> Self {
        let width = (high - low).max(f32::EPSILON * low.abs().max(1.0));
        let edges = (0..=bins).map(|i| low + width * (i as f32 / bins as f32)).collect();
        Self { counts: vec![0; bins], edges }
    }

    /// Counts the values. NaN counts in the lowest bin; observers refuse it before.
    pub fn add(&mut self, values: &[f32]) {
        let bins = self.counts.len();
        let (low, high) = (self.edges[0], self.edges[bins]);
        let per_width = bins as f32 / (high - low);
        let bin = |v: f32| (((v - low) * per_width) as isize).clamp(0, bins as isize - 1) as usize;
        let counts = values
            .par_chunks(1 << 15)
            .fold(
                || vec![0u32; bins],
                |mut counts, chunk| {
                    chunk.iter().for_each(|&v| counts[bin(v)] += 1);
                    counts
                },
            )
            .reduce(
                || vec![0u32; bins],
                |mut a, b| {
                    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                    a
                },
            );
        self.counts.iter_mut().zip(counts).for_each(|(total, n)| *total += u64::from(n));
    }

    /// The value below which a share `q` (0 to 1) of the counts lies, linear within a bin; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f32> {
        let total: u64 = self.counts.iter().sum();
        let mut left = q * total as f64;
        for (i, &count) in self.counts.iter().enumerate() {
            if count > 0 && left <= count as f64 {
                let (a, b) = (self.edges[i], self.edges[i + 1]);
                return Some(a + (b - a) * (left / count as f64) as f32);
            }
            left -= count as f64;
        }
        None
    }

    /// The magnitude below which a share `q` of the counts lies, each bin taken at its far edge.
    pub fn magnitude_quantile(&self, q: f64) -> Option<f32> {
        let total: u64 = self.counts.iter().sum();
        let mut bins: Vec<(f32, u64)> =
            self.edges.windows(2).zip(&self.counts).map(|(e, &n)| (e[0].abs().max(e[1].abs()), n)).collect();
        bins.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut left = q * total as f64;
        bins.into_iter().find_map(|(magnitude, n)| {
            left -= n as f64;
            (n > 0 && left <= 0.0).then_some(magnitude)
        })
    }
}

/// Statistics of one layer's input at one timestep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerStats {
    /// Per-channel minimum (for `avg-minmax`, averaged over batches).
    pub avg_min: Vec<f32>,
    /// Per-channel maximum, likewise.
    pub avg_max: Vec<f32>,
    /// Per-channel momentum shift; post-GELU layers only.
    pub shift: Option<Vec<f32>>,
    /// Distribution of the values of all channels.
    pub histogram: Option<Histogram>,
    /// Batches seen.
    pub batches: u64,
    /// Smallest value seen.
    pub tensor_min: f32,
    /// Largest value seen.
    pub tensor_max: f32,
}

impl LayerStats {
    /// Largest magnitude seen.
    pub fn absmax(&self) -> f32 {
        self.tensor_min.abs().max(self.tensor_max.abs())
    }

    /// Largest magnitude of each channel, max(|`avg_min`|, |`avg_max`|): for `avg-minmax` an average over
    /// batches.
    pub fn channel_absmax(&self) -> Vec<f32> {
        self.avg_min.iter().zip(&self.avg_max).map(|(low, high)| low.abs().max(high.abs())).collect()
    }
}

/// Scalars of one layer at one timestep, as in `step_{k}_index.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerScalars {
    /// Batches seen.
    pub n_batches: u64,
    /// Largest magnitude seen.
    pub tensor_absmax: f32,
    /// Smallest value seen.
    pub tensor_min: f32,
    /// Largest value seen.
    pub tensor_max: f32,
    /// Share of channels whose range is over 5 times the median channel's.
    pub spike_fraction: f32,
    /// Median over the channels of [`LayerStats::channel_absmax`].
    pub channel_p50: f32,
    /// 99 % quantile over the channels of the same, linear between neighbours ([`quantile`]).
    pub channel_p99: f32,
    /// Largest of the same; at most `tensor_absmax`, for that is no average over batches.
    pub channel_max: f32,
    /// Whether the npz has `{prefix}__shift`.
    pub has_shift: bool,
    /// Whether the npz has `{prefix}__hist_counts` and `{prefix}__hist_edges`.
    pub has_hist: bool,
    /// Largest magnitude of the shift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift_absmax: Option<f32>,
    /// Largest magnitude of the per-channel range after the shift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shifted_absmax: Option<f32>,
    /// 99.9 % quantile of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p999: Option<f32>,
    /// 99 % quantile of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p99: Option<f32>,
    /// Median of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p50: Option<f32>,
    /// 1 % quantile of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p01: Option<f32>,
    /// 0.1 % quantile of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p001: Option<f32>,
}

/// `step_{k}_index.json`: scalars by layer id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct StepIndex(pub BTreeMap<LayerId, LayerScalars>);

/// How the statistics came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatisticsMetadata {
    /// Images behind the statistics.
    pub num_images: usize,
    /// Timesteps observed.
    pub num_timesteps: usize,
    /// Forward passes, counted by image.
    pub total_processed: usize,
    /// Ids of the images.
    pub selected_image_ids: Vec<usize>,
    /// Fingerprint of the model.
    pub model: String,
    /// The observer and its origin.
    pub observer: String,
}

/// `layer_statistics.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatisticsIndex {
    /// Always [`STATISTICS_FORMAT`].
    pub format: String,
    /// Bins of each histogram.
    pub hist_bins: usize,
    /// Folder of the step files, relative to this document.
    pub timestep_dir: String,
    /// Noise level of each step.
    pub sigma_map: BTreeMap<usize, f32>,
    /// Ranges of σ with a name: `[low, high]`.
    pub bucket_definitions: BTreeMap<String, [f32; 2]>,
    /// Momentum of the shift.
    pub shift_momentum: f32,
    /// Layer ids that end so have a shift.
    pub post_gelu_suffix: String,
    /// The steps, rising.
    pub step_keys: Vec<usize>,
    /// How it came about.
    pub metadata: StatisticsMetadata,
}
