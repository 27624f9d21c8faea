//! A bit policy for taq in Rust.
//!
//! The rule: weights get 4 bits; activations get 6, and 8 in the last quarter of the timesteps, where the image gets
//! its details. Inputs that come out of GELU are shifted. Change [`assign`] to have a rule of your own.

use serde::Deserialize;
use serde_json::json;
use taq_policy::{LayerPlan, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, export_policy, guest};

/// The policy's settings, as in `taq decide --policy-config '{"late": 0.5}'`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The share of timesteps, at the end, that get 8 bits.
    pub late: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { late: 0.25 }
    }
}

/// What the policy says of itself: `taq policy inspect` shows it.
pub fn info() -> PolicyInfo {
    let schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "late": {
                "description": "The share of timesteps, at the end, that get 8 bits.",
                "type": "number", "minimum": 0, "maximum": 1, "default": 0.25
            }
        }
    });
    PolicyInfo {
        settings_schema: schema.as_object().cloned().unwrap_or_default(),
        ..PolicyInfo::new(
            "late-8-rust",
            env!("CARGO_PKG_VERSION"),
            "Six bits for activations, eight in the last quarter of the timesteps.",
        )
    }
}

/// The rule. The statistics of layer `i` are in `request.statistics[i]`, a column for each of them with one entry per
/// timestep.
///
/// # Errors
/// Settings that are unknown or out of range.
pub fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
    let settings: Settings = guest::settings(request)?;
    if !(0.0..=1.0).contains(&settings.late) {
        return Err(PolicyError::new(format!("settings: late must be 0 to 1, not {}", settings.late)));
    }
    let steps = request.timesteps.len();
    let early = (1.0 - settings.late) * steps as f64;
    let activation_bits: Vec<u8> = (0..steps).map(|step| if (step as f64) < early { 6 } else { 8 }).collect();
    let layers = request.layers.iter().map(|layer| LayerPlan {
        activation_bits: activation_bits.clone(),
        shift: layer.post_gelu,
        ..LayerPlan::uniform(layer.id.clone(), 4, 8, steps)
    });
    Ok(PolicyPlan::new(layers.collect()))
}

export_policy!(info, assign);

#[cfg(test)]
mod tests {
    use super::*;
    use taq_policy::testing;

    /// A small SD3: two blocks of width 64, four timesteps. `testing::read_request` takes what
    /// `taq policy request` prints of a run of yours.
    fn request() -> PolicyRequest {
        testing::sd3_request(2, 64, 4)
    }

    #[test]
    fn the_last_quarter_gets_eight_bits() {
        // Also checks the plan as taq does, and that the policy answers the same twice and through JSON.
        let plan = testing::run(&request(), assign).unwrap();
        for (layer, spec) in plan.layers.iter().zip(&request().layers) {
            assert_eq!(layer.activation_bits, [6, 6, 6, 8]);
            assert_eq!(layer.shift, spec.post_gelu);
        }
    }

    #[test]
    fn settings_are_checked() {
        let request = testing::with_settings(request(), &json!({ "late": 2 }));
        assert_eq!(
            testing::run(&request, assign).unwrap_err().to_string(),
            "settings: late must be 0 to 1, not 2"
        );
    }
}
