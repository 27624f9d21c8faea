//! `activations/sensitivities.json`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LayerId;
use crate::artifacts::Document;
use crate::metrics::spearman;

/// Σ‖error‖² / Σ‖output‖²: 0.01 is −20 dB. The sums go over the samples and all elements of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputError {
    /// Of all timesteps.
    pub all: f64,
    /// Of each part of the schedule; parts without a measured timestep are absent.
    pub buckets: BTreeMap<String, f64>,
}

/// The error of the model's output when one layer's weight or input is quantized, and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputErrors {
    /// Of the velocity, with the prompt and (if there is guidance) without.
    pub velocity: OutputError,
    /// Of the guided velocity v₋ + w (v₊ − v₋), which the sampler follows; absent without guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided: Option<OutputError>,
}

impl OutputErrors {
    /// The error of what the sampler follows, over all timesteps.
    pub fn followed(&self) -> f64 {
        self.guided.as_ref().unwrap_or(&self.velocity).all
    }
}

/// What one width does to one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SensitivityEntry {
    /// The layer.
    pub id: LayerId,
    /// Whether its weight (true) or its input (false) is quantized.
    pub weight: bool,
    /// Bits that it gets.
    pub bits: u8,
    /// By measured substitution: the layer is quantized, and the model is run.
    pub measured: OutputErrors,
    /// The second-order (Gauss–Newton) estimate from gradients.
    pub estimated: OutputErrors,
}

/// How well the estimate ranks the layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankCorrelation {
    /// Whether of weights (true) or of inputs (false).
    pub weight: bool,
    /// Bits of the layers.
    pub bits: u8,
    /// Spearman's ρ over the layers between the measured and the estimated error of what the sampler follows; absent
    /// where either does not tell the layers apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rho: Option<f64>,
}

/// `activations/sensitivities.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sensitivities {
    /// Always [`Sensitivities::FORMAT`].
    pub format: String,
    /// Fingerprint of the model.
    pub model: String,
    /// Images that were measured on, from the first.
    pub num_images: usize,
    /// Timesteps that were measured at, with their noise levels.
    pub sigma_map: BTreeMap<usize, f32>,
    /// Ranges of σ with a name: `[low, high]`.
    pub bucket_definitions: BTreeMap<String, [f32; 2]>,
    /// Classifier-free guidance weight w; 0 without guidance.
    pub cfg_weight: f32,
    /// Random directions behind the estimate.
    pub probes: usize,
    /// Layer by layer in the order of the forward pass: its weight's widths, its input's.
    pub entries: Vec<SensitivityEntry>,
    /// How well the estimate ranks the layers at each width.
    pub rank_correlation: Vec<RankCorrelation>,
}

impl Document for Sensitivities {
    const FORMAT: &'static str = "taq.sensitivities.v1";
    const KIND: &'static str = "sensitivities";
}

impl Sensitivities {
    /// The entries of one width, in the order of the forward pass.
    pub fn of(&self, weight: bool, bits: u8) -> impl Iterator<Item = &SensitivityEntry> {
        self.entries.iter().filter(move |e| (e.weight, e.bits) == (weight, bits))
    }

    /// What a policy is told.
    pub fn for_policy(&self) -> Vec<crate::Sensitivity> {
        let entry = |e: &SensitivityEntry| crate::Sensitivity {
            id: e.id.clone(),
            bits: e.bits,
            weight: e.weight,
            error: e.measured.followed() as f32,
        };
        self.entries.iter().map(entry).collect()
    }
}

/// The rank correlation of every width.
pub(super) fn correlations(entries: &[SensitivityEntry]) -> Vec<RankCorrelation> {
    let mut by_width: BTreeMap<(bool, u8), [Vec<f64>; 2]> = BTreeMap::new();
    for e in entries {
        let [measured, estimated] = by_width.entry((!e.weight, e.bits)).or_default();
        measured.push(e.measured.followed());
        estimated.push(e.estimated.followed());
    }
    let correlation = |((input, bits), [measured, estimated]): ((bool, u8), [Vec<f64>; 2])| RankCorrelation {
        weight: !input,
        bits,
        rho: spearman(&measured, &estimated),
    };
    by_width.into_iter().map(correlation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, weight: bool, bits: u8, measured: f64, estimated: f64) -> SensitivityEntry {
        let errors = |guided: f64| OutputErrors {
            velocity: OutputError { all: 1.0, buckets: BTreeMap::new() },
            guided: Some(OutputError { all: guided, buckets: BTreeMap::new() }),
        };
        let (measured, estimated) = (errors(measured), errors(estimated));
        SensitivityEntry { id: id.into(), weight, bits, measured, estimated }
    }

    #[test]
    fn each_width_is_ranked_on_its_own_and_by_the_guided_error() {
        let entries = [
            entry("a", true, 4, 0.1, 0.2),
            entry("a", false, 4, 0.1, 0.9),
            entry("b", true, 4, 0.3, 0.4),
            entry("b", false, 4, 0.2, 0.8),
            entry("b", true, 8, 0.2, 0.8),
        ];
        let found: Vec<_> = correlations(&entries).iter().map(|c| (c.weight, c.bits, c.rho)).collect();
        assert_eq!(found, [(true, 4, Some(1.0)), (true, 8, None), (false, 4, Some(-1.0))]);
    }

    #[test]
    fn without_guidance_the_velocity_is_what_the_sampler_follows() {
        let mut errors = entry("a", true, 4, 0.25, 0.0).measured;
        assert_eq!(errors.followed(), 0.25);
        errors.guided = None;
        assert_eq!(errors.followed(), 1.0);
    }
}
