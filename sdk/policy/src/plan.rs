//! What a policy decides.

use serde::{Deserialize, Serialize};

use crate::{LayerId, PolicyError, PolicyRequest};

/// The `format` of a [`PolicyPlan`].
pub const PLAN_FORMAT: &str = "taq.policy_plan.v1";

/// The statistic that becomes the clipping range of an activation grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScaleSource {
    /// Largest magnitude: nothing is clipped on the calibration set.
    #[default]
    Absmax,
    /// 99.9 % quantile of the magnitudes.
    P999,
    /// 99 % quantile of the magnitudes.
    P99,
}

/// The decision for one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LayerPlan {
    /// The layer.
    pub id: LayerId,
    /// Bits of the weight.
    pub weight_bits: u8,
    /// Bits of the input, one entry per timestep of the request.
    pub activation_bits: Vec<u8>,
    /// Where the clipping range comes from.
    #[serde(default)]
    pub scale_source: ScaleSource,
    /// Whether the per-channel shift is subtracted before quantizing (post-GELU layers only).
    #[serde(default)]
    pub shift: bool,
    /// SmoothQuant's migration strength α, 0 to 1, if channels are to be rescaled; not of a layer with `shift`. The clipping
    /// range is then the largest magnitude of the rescaled input, whatever `scale_source` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoothquant_alpha: Option<f32>,
    /// Why, where the decision is out of the ordinary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl LayerPlan {
    /// The same activation bits at every one of `steps` timesteps; absmax scales, no shift.
    pub fn uniform(id: LayerId, weight_bits: u8, activation_bits: u8, steps: usize) -> Self {
        Self {
            id,
            weight_bits,
            activation_bits: vec![activation_bits; steps],
            scale_source: ScaleSource::Absmax,
            shift: false,
            smoothquant_alpha: None,
            reason: None,
        }
    }
}

/// The decision for every layer of the request, in its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyPlan {
    /// Always [`PLAN_FORMAT`].
    pub format: String,
    /// One entry per layer.
    pub layers: Vec<LayerPlan>,
}

impl PolicyPlan {
    /// A plan in the current format.
    pub fn new(layers: Vec<LayerPlan>) -> Self {
        Self { format: PLAN_FORMAT.to_owned(), layers }
    }
    /// Whether the plan answers the request: the same layers in the same order, the right lengths, allowed bits.
    ///
    /// # Errors
    /// The first layer and field that do not, and what was expected.
    pub fn check(&self, request: &PolicyRequest) -> Result<(), PolicyError> {
        let refuse = |reason: String| Err(PolicyError::new(reason));
        if self.format != PLAN_FORMAT {
            return refuse(format!("format is `{}`, expected `{PLAN_FORMAT}`", self.format));
        }
        let (found, layers) = (self.layers.len(), request.layers.len());
        if found != layers {
            return refuse(format!("it has {found} layers, the request {layers}"));
        }
        let steps = request.timesteps.len();
        for (layer, spec) in self.layers.iter().zip(&request.layers) {
            let id = &spec.id;
            if layer.id != *id {
                return refuse(format!("expected layer {id} in this place, found {}", layer.id));
            }
            if !request.weight_bits.contains(&layer.weight_bits) {
                let allowed = &request.weight_bits;
                return refuse(format!(
                    "{id}: weight_bits is {}, allowed are {allowed:?}",
                    layer.weight_bits
                ));
            }
            if layer.activation_bits.len() != steps {
                let found = layer.activation_bits.len();
                return refuse(format!("{id}: activation_bits has {found} entries for {steps} timesteps"));
            }
            if let Some(bits) = layer.activation_bits.iter().find(|b| !request.activation_bits.contains(b)) {
                let allowed = &request.activation_bits;
                return refuse(format!("{id}: activation_bits has {bits}, allowed are {allowed:?}"));
            }
            if layer.shift && !spec.post_gelu {
                return refuse(format!("{id}: shift is for post-GELU layers"));
            }
            if let Some(alpha) = layer.smoothquant_alpha {
                if !(0.0..=1.0).contains(&alpha) {
                    return refuse(format!("{id}: smoothquant_alpha is {alpha}, expected 0 to 1"));
                }
                if layer.shift {
                    return refuse(format!("{id}: smoothquant_alpha and shift exclude each other"));
                }
            }
        }
        Ok(())
    }
}
