//! The baseline: one weight width and one activation width for every layer at every timestep, W4A8 by default,
//! as in TaQ-DiT (arXiv 2411.14172).

use serde::{Deserialize, Serialize};
use taq_policy::{
    LayerPlan, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, ScaleSource, export_policy, guest,
};

/// Settings of `baseline-a8`.
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
    /// SmoothQuant's migration strength α, 0 to 1, for every layer that is not behind a GELU; null: no SmoothQuant.
    pub smoothquant_alpha: Option<f32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bits_w: 4,
            bits_a: 8,
            scale_source: ScaleSource::Absmax,
            shift_post_gelu: true,
            smoothquant_alpha: None,
        }
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
        if let Some(alpha) = self.smoothquant_alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(PolicyError::new(format!("smoothquant_alpha must be 0 to 1, not {alpha}")));
        }
        Ok(())
    }
}

/// What the policy says of itself.
pub fn info() -> PolicyInfo {
    PolicyInfo::new(
        "baseline-a8",
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
        smoothquant_alpha: settings.smoothquant_alpha.filter(|_| !layer.post_gelu),
        ..LayerPlan::uniform(layer.id.clone(), settings.bits_w, settings.bits_a, steps)
    });
    Ok(PolicyPlan::new(layers.collect()))
}

export_policy!(info, assign);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use taq_policy::testing::{run, sd3_request, with_settings};

    use super::*;

    #[test]
    fn every_layer_gets_the_same_bits_and_fc2_a_shift() {
        let request = sd3_request(2, 64, 3);
        let plan = run(&request, assign).unwrap();
        for (layer, spec) in plan.layers.iter().zip(&request.layers) {
            assert_eq!((layer.weight_bits, layer.shift), (4, spec.post_gelu));
            assert_eq!(layer.activation_bits, [8, 8, 8]);
        }
        let settings = json!({ "bits_w": 3, "bits_a": 6, "shift_post_gelu": false, "scale_source": "p999" });
        let plan = run(&with_settings(request, &settings), assign).unwrap();
        for layer in plan.layers {
            assert_eq!((layer.weight_bits, layer.shift, layer.scale_source), (3, false, ScaleSource::P999));
            assert_eq!(layer.activation_bits, [6, 6, 6]);
        }
    }

    #[test]
    fn all_but_the_layers_behind_a_gelu_are_smoothed() {
        let request = with_settings(sd3_request(2, 64, 3), &json!({ "smoothquant_alpha": 0.25 }));
        let plan = run(&request, assign).unwrap();
        for (layer, spec) in plan.layers.iter().zip(&request.layers) {
            assert_eq!(layer.smoothquant_alpha, (!spec.post_gelu).then_some(0.25));
        }
        let request = with_settings(sd3_request(1, 64, 1), &json!({ "smoothquant_alpha": 1.5 }));
        let error = run(&request, assign).unwrap_err().to_string();
        assert_eq!(error, "settings: smoothquant_alpha must be 0 to 1, not 1.5");
    }

    #[test]
    fn bits_out_of_range_and_bits_that_are_not_allowed_are_refused() {
        let mut request = with_settings(sd3_request(1, 64, 1), &json!({ "bits_a": 9 }));
        assert_eq!(run(&request, assign).unwrap_err().to_string(), "settings: bits_a must be 2 to 8, not 9");
        request = with_settings(request, &json!({ "bits_w": 5 }));
        request.weight_bits = vec![4, 8];
        assert_eq!(run(&request, assign).unwrap_err().to_string(), "bits_w must be one of [4, 8], not 5");
    }
}
