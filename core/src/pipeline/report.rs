//! `report.json`: what a run achieved and what it cost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::round::BlockMetrics;
use crate::artifacts::Document;
use crate::manifest::Variant;
use crate::metrics::{Interval, LevelDifference};
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
    /// The same images as PNG files hold them; absent in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<LevelDifference>,
    /// The class that the evaluator takes the image for; absent without an evaluator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_as: Option<String>,
    /// Whether the prompt names that class; absent without an evaluator, and of prompts it does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recognized: Option<bool>,
}

/// Prompt accuracy: how many images the evaluator recognises as what their prompt names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptAccuracy {
    /// Share of the judged images whose most likely class is one that the prompt names, 0 to 1; absent when no image
    /// is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Its interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Images whose prompt the evaluator knows. The others are neither right nor wrong.
    pub judged: usize,
    /// Images whose prompt is nobody's caption in the evaluator's labels.
    pub unknown: usize,
}

/// The evaluator, and what it makes of full precision: the most that a variant can be expected to reach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluatorReport {
    /// Hash of classifier and labels.
    pub fingerprint: String,
    /// Prompt accuracy of the full-precision images.
    pub full_precision: PromptAccuracy,
}

/// 95 % intervals of a variant's figures, by bootstrap over its images (2000 resamples). Each is absent where its
/// figure is, and of a single image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Intervals {
    /// Of `pooled_psnr`, dB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooled_psnr: Option<Interval>,
    /// Of `mean_psnr`, dB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_psnr: Option<Interval>,
    /// Of `ssim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssim: Option<Interval>,
    /// Of `latent_error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent_error: Option<Interval>,
}

/// All images of one variant against full precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VariantReport {
    /// What was run.
    pub variant: Variant,
    /// −10 log₁₀ of the mean squared error over all pixels of all images, dB; absent when they are equal. The worst
    /// images decide it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled_psnr: Option<f64>,
    /// Mean of the images' own PSNR, dB; never below `pooled_psnr`, and absent when any image is equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_psnr: Option<f64>,
    /// Mean structural similarity.
    pub ssim: f64,
    /// Mean relative L2 error of the final latents.
    pub latent_error: f64,
    /// How far these figures would move with other images.
    pub intervals: Intervals,
    /// Prompt accuracy; absent without an evaluator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_accuracy: Option<PromptAccuracy>,
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
    /// The evaluator, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<EvaluatorReport>,
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
