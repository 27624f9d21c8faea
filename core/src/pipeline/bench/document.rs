//! `bench.json`: models side by side.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::Document;
use crate::metrics::{InceptionScore, KernelDistance};
use crate::pipeline::{PromptAccuracy, VariantReport};

/// Seconds an image, over the measured batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the batches (numpy's `std`).
    pub std: f64,
    /// Median.
    pub p50: f64,
    /// 95 % quantile.
    pub p95: f64,
    /// Fastest.
    pub min: f64,
    /// Slowest.
    pub max: f64,
    /// Batches measured. A last one that was not full is left out, if there are others.
    pub batches: usize,
    /// Batches before them that were not.
    pub warm_up: usize,
}

/// Peak memory while a model painted, warm-up included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Resident memory of the process, bytes: with everything else that it holds, and on the CPU with MLX's arrays.
    pub peak_rss: usize,
    /// MLX's arrays, bytes: on a GPU its memory.
    pub peak_device: usize,
}

/// A set of images against the reference set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDistances {
    /// Fréchet distance of the features (FID, if they are Inception's).
    pub frechet: f64,
    /// Kernel distance of the features (KID, if they are Inception's), of pairs where the images are.
    pub kernel: KernelDistance,
    /// Images of the reference.
    pub reference_images: usize,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchEntry {
    /// As it was asked for: `fp`, `w4a8`, `quantized`, a run folder.
    pub name: String,
    /// Bits of weights, averaged over the parameters of quantizable layers; absent of full precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bits: Option<f64>,
    /// Bits of activations, averaged over layers and timesteps; absent of full precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_bits: Option<f64>,
    /// Bytes of all linear layers' weights as packed integers with step sizes and zero points; of layers in full precision,
    /// as 16-bit numbers.
    pub weight_bytes: u64,
    /// Time.
    pub latency: Latency,
    /// Memory.
    pub memory: Memory,
    /// Images painted.
    pub images: usize,
    /// Against the reference set; absent without features, with `--skip-metrics`, and of the reference itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distances: Option<SetDistances>,
    /// Absent where the feature extractor has no logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<InceptionScore>,
    /// Prompt accuracy; absent without an evaluator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_accuracy: Option<PromptAccuracy>,
    /// Image by image against the reference's at the same prompt and noise; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paired: Option<VariantReport>,
}

/// See the module's head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchReport {
    /// Always [`BenchReport::FORMAT`].
    pub format: String,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// `cpu` or `gpu`.
    pub device: String,
    /// What the transformer computes in: `float32`, `float16` or `bfloat16`.
    pub dtype: String,
    /// Steps of the sampler.
    pub num_steps: usize,
    /// Classifier-free guidance weight.
    pub cfg_weight: f32,
    /// Height and width of the images.
    pub image_size: (usize, usize),
    /// Images in one forward pass.
    pub batch_size: usize,
    /// Seed of image 0; absent when start latents came from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What images are measured against: a name among `entries`, or a folder; absent with `--skip-metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Hash of the feature extractor (or evaluator), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// The models, in the order they were run in.
    pub entries: Vec<BenchEntry>,
}

impl Document for BenchReport {
    const FORMAT: &'static str = "taq.bench.v1";
    const KIND: &'static str = "benchmark";
}
