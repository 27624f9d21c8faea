//! The baseline: one weight width and one activation width for every layer at every timestep, W4A8 by default,
//! as in TaQ-DiT (arXiv 2411.14172).

use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::{BitPolicy, Error, LayerPlan, PolicyPlan, PolicyRequest, Result, ScaleSource, register};

/// Settings of `a8`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct A8Settings {
    /// Bits of every weight, 2 to 8.
    pub bits_w: u8,
    /// Bits of every activation, 2 to 8.
    pub bits_a: u8,
    /// The statistic that becomes the clipping range of activations.
    pub scale_source: ScaleSource,
    /// Whether post-GELU inputs are shifted per channel before they are quantized.
    pub shift_post_gelu: bool,
}

impl Default for A8Settings {
    fn default() -> Self {
        Self { bits_w: 4, bits_a: 8, scale_source: ScaleSource::Absmax, shift_post_gelu: true }
    }
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct A8(A8Settings);

impl A8 {
    /// The policy with these settings.
    pub fn new(settings: A8Settings) -> Result<Self> {
        for (name, bits) in [("bits_w", settings.bits_w), ("bits_a", settings.bits_a)] {
            if !(2..=8).contains(&bits) {
                return Err(Error::settings("policy `a8`", format!("{name} must be 2 to 8, not {bits}")));
            }
        }
        Ok(Self(settings))
    }
}

impl BitPolicy for A8 {
    fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        let steps = request.timesteps.len();
        let layers = request.layers.iter().map(|layer| LayerPlan {
            scale_source: self.0.scale_source,
            shift: layer.post_gelu && self.0.shift_post_gelu,
            ..LayerPlan::uniform(layer.id.clone(), self.0.bits_w, self.0.bits_a, steps)
        });
        Ok(PolicyPlan::new(layers.collect()))
    }
}

register!(
    Policy,
    "a8",
    A8Settings,
    A8::new,
    "The same bits everywhere (W4A8 unless told otherwise), shifts for post-GELU inputs."
);

#[cfg(test)]
mod tests {
    use taq_core::{LayerSpec, Role, Stream, Timestep};

    use super::*;

    #[test]
    fn every_layer_gets_the_same_bits_and_fc2_a_shift() {
        let layer = |id: &str, role, post_gelu| LayerSpec {
            id: id.into(),
            block: "mm0".into(),
            stream: Stream::Image,
            role,
            in_features: 8,
            out_features: 8,
            post_gelu,
        };
        let layers = vec![layer("a", Role::Q, false), layer("b", Role::Fc2, true)];
        let timesteps = (0..3).map(|step| Timestep { step, sigma: 1.0 - step as f32 / 3.0 }).collect();
        let request = PolicyRequest::new("toy", layers, timesteps);
        let plan = A8::new(A8Settings::default()).unwrap().assign(&request).unwrap();
        assert_eq!(plan.layers.len(), 2);
        assert_eq!(plan.layers[0].activation_bits, [8, 8, 8]);
        assert_eq!(plan.layers[0].weight_bits, 4);
        assert_eq!(plan.layers.iter().map(|l| l.shift).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn bits_out_of_range_are_refused() {
        let settings = A8Settings { bits_a: 9, ..A8Settings::default() };
        assert!(A8::new(settings).unwrap_err().to_string().contains("bits_a must be 2 to 8, not 9"));
    }
}
