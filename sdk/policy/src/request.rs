//! What a policy is told.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{LayerId, LayerSpec, PolicyError};

/// The `format` of a [`PolicyRequest`].
pub const REQUEST_FORMAT: &str = "taq.policy_request.v1";

/// One step of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Timestep {
    /// Position in the schedule, from 0 (pure noise).
    pub step: usize,
    /// Noise level, 1 at the start, falling to 0.
    pub sigma: f32,
}

/// What was measured of one layer's input: every column has one entry per timestep of the request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LayerColumns {
    /// The layer.
    pub id: LayerId,
    /// Largest magnitude, or where the observer clips.
    pub absmax: Vec<f32>,
    /// Smallest value, or where the observer clips.
    pub min: Vec<f32>,
    /// Largest value, or where the observer clips.
    pub max: Vec<f32>,
    /// 0.1 % quantile of the values.
    pub p001: Vec<f32>,
    /// 1 % quantile of the values.
    pub p01: Vec<f32>,
    /// Median of the magnitudes.
    pub p50: Vec<f32>,
    /// 99 % quantile of the magnitudes.
    pub p99: Vec<f32>,
    /// 99.9 % quantile of the magnitudes.
    pub p999: Vec<f32>,
    /// Largest magnitude of the per-channel shift; empty unless the layer is post-GELU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shift_magnitude: Vec<f32>,
    /// Largest magnitude after the shift; empty unless the layer is post-GELU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shifted_absmax: Vec<f32>,
    /// absmax / p99.
    pub outlier_ratio: Vec<f32>,
    /// Share of channels whose range is over 5 times the median channel's.
    pub spike_fraction: Vec<f32>,
    /// Median over the channels of the largest magnitude of each, which is an average over batches as in
    /// `channel_absmax`.
    pub channel_p50: Vec<f32>,
    /// 99 % quantile over the channels of the same, linear between neighbours.
    pub channel_p99: Vec<f32>,
    /// Largest of the same; at most `absmax`, for that is no average over batches.
    pub channel_max: Vec<f32>,
    /// Batches behind each entry.
    pub batches: Vec<u64>,
    /// Largest magnitude of every channel, averaged over batches, one row per timestep; empty unless [`PolicyInfo::per_channel`] asks.
    ///
    /// [`PolicyInfo::per_channel`]: crate::PolicyInfo::per_channel
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_absmax: Vec<Vec<f32>>,
}

impl LayerColumns {
    /// Whether these are of this layer and of this many timesteps.
    fn fit(&self, layer: &LayerSpec, steps: usize) -> Result<(), PolicyError> {
        if self.id != layer.id {
            return Err(PolicyError::new(format!(
                "expected the statistics of {}, found {}",
                layer.id, self.id
            )));
        }
        let columns = [
            ("absmax", self.absmax.len(), false),
            ("min", self.min.len(), false),
            ("max", self.max.len(), false),
            ("p001", self.p001.len(), false),
            ("p01", self.p01.len(), false),
            ("p50", self.p50.len(), false),
            ("p99", self.p99.len(), false),
            ("p999", self.p999.len(), false),
            ("shift_magnitude", self.shift_magnitude.len(), true),
            ("shifted_absmax", self.shifted_absmax.len(), true),
            ("outlier_ratio", self.outlier_ratio.len(), false),
            ("spike_fraction", self.spike_fraction.len(), false),
            ("channel_p50", self.channel_p50.len(), false),
            ("channel_p99", self.channel_p99.len(), false),
            ("channel_max", self.channel_max.len(), false),
            ("batches", self.batches.len(), false),
        ];
        match columns.into_iter().find(|&(_, found, optional)| found != steps && !(optional && found == 0)) {
            Some((name, found, _)) => Err(PolicyError::new(format!(
                "statistics of {}: {name} has {found} entries for {steps} timesteps",
                self.id
            ))),
            None => Ok(()),
        }
    }
}

/// How much the model's output suffers when one layer is quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// The layer.
    pub id: LayerId,
    /// Bits that the layer was given.
    pub bits: u8,
    /// Whether its weight (true) or its input (false) was quantized.
    pub weight: bool,
    /// Mean squared error of the model's output against full precision, divided by the mean square of the
    /// full-precision output: 0.01 is −20 dB. The output is the guided prediction that the sampler takes, the
    /// means go over all of its elements, the calibration images and the timesteps. Squared, so that the errors
    /// of several layers add up where they are independent.
    pub error: f32,
}

/// Everything a policy may look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Always [`REQUEST_FORMAT`].
    pub format: String,
    /// Name of the model.
    pub model: String,
    /// The quantizable layers, in the order of the forward pass.
    pub layers: Vec<LayerSpec>,
    /// The timesteps that were observed, in the order of the schedule.
    pub timesteps: Vec<Timestep>,
    /// One entry per layer, in the order of `layers`.
    pub statistics: Vec<LayerColumns>,
    /// Optional; empty when nobody measured them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sensitivities: Vec<Sensitivity>,
    /// Weight bits that the host can use.
    pub weight_bits: Vec<u8>,
    /// Activation bits that the host can use.
    pub activation_bits: Vec<u8>,
    /// The policy's own settings, as the user gave them; empty means every default.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
}

impl PolicyRequest {
    /// A request without statistics that allows every width from 2 to 8 bits.
    pub fn new(model: impl Into<String>, layers: Vec<LayerSpec>, timesteps: Vec<Timestep>) -> Self {
        Self {
            format: REQUEST_FORMAT.to_owned(),
            model: model.into(),
            layers,
            timesteps,
            statistics: Vec::new(),
            sensitivities: Vec::new(),
            weight_bits: (2..=8).collect(),
            activation_bits: (2..=8).collect(),
            settings: Map::new(),
        }
    }

    /// Every layer with what was measured of it, for policies that cannot do without: the layers agree, and every
    /// column has one entry per timestep (those of the shift may also be empty).
    ///
    /// # Errors
    /// The first layer and column that are missing or of another length.
    pub fn measured(&self) -> Result<Vec<(&LayerSpec, &LayerColumns)>, PolicyError> {
        let (layers, found) = (self.layers.len(), self.statistics.len());
        if found != layers {
            return Err(PolicyError::new(format!("statistics of {layers} layers are needed, found {found}")));
        }
        let pairs = self.layers.iter().zip(&self.statistics);
        pairs
            .map(|(layer, columns)| columns.fit(layer, self.timesteps.len()).map(|()| (layer, columns)))
            .collect()
    }
}
