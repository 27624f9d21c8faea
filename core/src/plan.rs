//! The quantization plan, `activations/quant_config.json`: a policy's decision with the numbers filled in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quant::activation_qmax;
use crate::{LayerId, Result};

/// The `format` of a [`QuantConfig`]. Versions 3 and 4 are the Python ancestor's, whose `scale` is the absmax.
pub const QUANT_CONFIG_FORMAT: &str = "per_timestep_quant_config_v5";

/// The activation grid of one layer at one timestep: symmetric, per tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivationGrid {
    /// Bits.
    pub bits: u8,
    /// Magnitude that the outermost point stands for (after the shift, if there is one).
    pub absmax: f32,
    /// Step size: absmax / (2^(bits−1) − 1).
    pub scale: f32,
    /// Whether `{prefix}__shift` of the step's npz is subtracted before quantizing and added after.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shift: bool,
}

/// The plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantConfig {
    /// Always [`QUANT_CONFIG_FORMAT`].
    pub format: String,
    /// Fingerprint of the model that it is for.
    pub model: String,
    /// The policy and its origin.
    pub policy: String,
    /// Weight bits by layer.
    pub weight_bits: BTreeMap<LayerId, u8>,
    /// Activation grids by step and layer.
    pub per_timestep: BTreeMap<usize, BTreeMap<LayerId, ActivationGrid>>,
    /// Layers that are smoothed. Their grids are those of the smoothed inputs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub smoothquant: BTreeMap<LayerId, SmoothQuant>,
    /// Noise level of each step.
    pub sigma_map: BTreeMap<usize, f32>,
    /// Totals.
    pub summary: PlanSummary,
}

impl QuantConfig {
    /// The same plan with so many bits for every input at every timestep, up to the same magnitudes.
    ///
    /// # Errors
    /// [`crate::Error::Settings`] unless `bits` is 2 to 8.
    pub fn with_activation_bits(mut self, bits: u8) -> Result<Self> {
        let qmax = activation_qmax(bits)?;
        for grid in self.per_timestep.values_mut().flat_map(BTreeMap::values_mut) {
            (grid.bits, grid.scale) = (bits, grid.absmax / qmax);
        }
        self.summary.average_activation_bits = f64::from(bits);
        Ok(self)
    }
}

/// How one layer is smoothed ([`Smoothing`](crate::quant::Smoothing)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SmoothQuant {
    /// Migration strength α.
    pub alpha: f32,
    /// What the input's channels are divided by and the weight's columns multiplied by, `[in_features]`.
    pub scale: Vec<f32>,
}

/// Totals of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanSummary {
    /// Timesteps planned for.
    pub total_timesteps: usize,
    /// Layers planned for.
    pub total_layers: usize,
    /// Timesteps × layers.
    pub total_decisions: usize,
    /// Weight bits averaged over parameters.
    pub average_weight_bits: f64,
    /// Activation bits averaged over decisions.
    pub average_activation_bits: f64,
    /// Post-GELU layers with a shift.
    pub post_gelu_layers_with_shift: usize,
}
