//! The baseline: one weight width and one activation width for every layer at every timestep, W4A8 by default,
//! as in TaQ-DiT (arXiv 2411.14172).

use serde::{Deserialize, Serialize};
use taq_policy::{
    LayerPlan, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, ScaleSource, export_policy, guest,
};

/// Settings of `a8`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bits of every weight, 2 to 8.
    pub bits_w: u8,
    /// Bits of every activation, 2 to 8.
    pub bits_a: u8,
    /// The statistic that becomes the clipping range of activations.
    pub scale_source: ScaleSource,
    /// Whether post-GELU inputs are shifted per channel before they are quantized.
    pub shift_post_gelu: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bits_w: 4, bits_a: 8, scale_source: ScaleSource::Absmax, shift_post_gelu: true }
    }
}

impl Settings {
    /// Whether the settings make sense, whatever the request.
    ///
    /// # Errors
    /// The first field that does not, and what was expected.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (name, bits) in [("bits_w", self.bits_w), ("bits_a", self.bits_a)] {
            if !(2..=8).contains(&bits) {
                return Err(PolicyError::new(format!("{name} must be 2 to 8, not {bits}")));
            }
        }
        Ok(())
    }
}

/// What the policy says of itself.
pub fn info() -> PolicyInfo {
    PolicyInfo::new(
        "a8",
        env!("CARGO_PKG_VERSION"),
        "The same bits everywhere (W4A8 unless told otherwise), shifts for post-GELU inputs.",
    )
    .with_settings_schema(include_str!("../settings.schema.json"))
}

/// The plan.
///
/// # Errors
/// Settings that are unknown, or bits that the request does not allow.
pub fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
    let settings: Settings = guest::settings(request)?;
    settings.check().map_err(guest::refused_settings)?;
    for (name, bits, allowed) in [
        ("bits_w", settings.bits_w, &request.weight_bits),
        ("bits_a", settings.bits_a, &request.activation_bits),
    ] {
        if !allowed.contains(&bits) {
            return Err(PolicyError::new(format!("{name} must be one of {allowed:?}, not {bits}")));
        }
    }
    let steps = request.timesteps.len();
    let layers = request.layers.iter().map(|layer| LayerPlan {
        scale_source: settings.scale_source,
        shift: layer.post_gelu && settings.shift_post_gelu,
        ..LayerPlan::uniform(layer.id.clone(), settings.bits_w, settings.bits_a, steps)
    });
    Ok(PolicyPlan::new(layers.collect()))
}

export_policy!(info, assign);
