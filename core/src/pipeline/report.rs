//! `report.json`: what a run achieved and what it cost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::round::BlockMetrics;
use crate::artifacts::Document;
use crate::manifest::Variant;
use crate::plan::PlanSummary;

/// One image against its full-precision twin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageScore {
    /// The prompt.
    pub prompt: String,
    /// Relative L2 error of the final latent.
    pub latent_error: f64,
    /// Mean squared error of the pixels (0 to 1).
    pub mse: f64,
    /// −10 log₁₀ of `mse`, dB; absent when the images are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// Structural similarity, at most 1.
    pub ssim: f64,
}

/// All images of one variant against full precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VariantReport {
    /// What was run.
    pub variant: Variant,
    /// −10 log₁₀ of the mean squared error over all images, dB; absent when they are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// Mean structural similarity.
    pub ssim: f64,
    /// Mean relative L2 error of the final latents.
    pub latent_error: f64,
    /// Image by image.
    pub images: Vec<ImageScore>,
}

/// See the module's head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Always [`Report::FORMAT`].
    pub format: String,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// Steps of the sampler.
    pub num_steps: usize,
    /// Classifier-free guidance weight.
    pub cfg_weight: f32,
    /// Seed of image 0; absent when start latents came from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Totals of the plan, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanSummary>,
    /// Each variant but full precision.
    pub variants: Vec<VariantReport>,
    /// How rounding went, block by block.
    pub blocks: Vec<BlockMetrics>,
    /// Time and peak memory of each stage, as it was last run and not merely reused.
    pub stages: Vec<Outcome>,
    /// Sheet with all images side by side, below the run folder.
    pub comparison: String,
}

impl Document for Report {
    const FORMAT: &'static str = "taq.report.v1";
    const KIND: &'static str = "report";
}
