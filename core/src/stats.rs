//! What observing leaves behind: statistics of every layer's input at every timestep.
//!
//! On disk (`activations/`): `layer_statistics.json` is a [`StatisticsIndex`]; for each step k,
//! `timestep_stats/step_{k}.npz` holds the per-channel vectors and histograms and
//! `timestep_stats/step_{k}_index.json` a [`StepIndex`] with the scalars.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LayerId;

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
