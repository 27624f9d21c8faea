//! What observing leaves behind: statistics of every layer's input at every timestep.
//!
//! On disk (`activations/`): `layer_statistics.json` is a [`StatisticsIndex`]; for each step k,
//! `timestep_stats/step_{k}.npz` holds the per-channel vectors and histograms and
//! `timestep_stats/step_{k}_index.json` a [`StepIndex`] with the scalars.

mod channels;
mod extremes;
mod histogram;
mod log_histogram;
mod quantile;
mod range;
mod tally;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LayerId;
pub use channels::{ChannelProfile, PROFILE_BINS, PROFILE_REACH, profile_edges};
pub use extremes::ChannelExtremes;
pub(crate) use extremes::all_finite;
pub use histogram::Histogram;
pub use log_histogram::{LogBin, LogHistogram};
pub use quantile::{quantile, quantile_f64};
pub use range::InputRange;

/// The `format` of [`StatisticsIndex`]. Versions 2 and 3 are the Python ancestor's.
pub const STATISTICS_FORMAT: &str = "per_timestep_npz_v4";

/// Statistics of one layer's input at one timestep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerStats {
    /// What the observer says, whose ranges plans are made from.
    pub range: InputRange,
    /// What further observers say, by their names.
    pub beside: BTreeMap<String, InputRange>,
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
    /// Lower end of the observer's range: `tensor_min`, unless the observer clips.
    pub range_min: f32,
    /// Upper end of the observer's range.
    pub range_max: f32,
    /// Both ends of the ranges of further observers, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, [f32; 2]>,
    /// Share of channels whose range is over 5 times the median channel's.
    pub spike_fraction: f32,
    /// Median over the channels of [`InputRange::channel_absmax`].
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
    /// 99.9 % quantile of the magnitudes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p999: Option<f32>,
    /// 99 % quantile of the magnitudes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hist_p99: Option<f32>,
    /// Median of the magnitudes.
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
    /// The observer whose ranges plans are made from.
    pub observer: ObserverRecord,
    /// Further observers, whose ranges lie beside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<ObserverRecord>,
    /// Samples in one forward pass, which running averages are taken over.
    pub batch_size: usize,
}

/// An observer that looked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObserverRecord {
    /// Its name.
    pub name: String,
    /// The settings that were given; what is absent is its default.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

impl LayerScalars {
    /// Largest magnitude of the observer's range.
    pub fn range_absmax(&self) -> f32 {
        self.range_min.abs().max(self.range_max.abs())
    }
}

/// `layer_statistics.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatisticsIndex {
    /// Always [`STATISTICS_FORMAT`].
    pub format: String,
    /// Bins of each histogram; 0 where there are none.
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
