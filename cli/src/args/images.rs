//! Flags of what is painted, which `generate` and `bench` share.

use std::path::PathBuf;

use taq_core::manifest::{GenerateSettings, Prompts};

use super::parse;

/// Prompts, noise, steps, guidance, size.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// A prompt; may be given several times. Calibration should not have seen it
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Vec<String>,

    /// Prompts: a text file with one a line, or a csv file (column `prompt`, else the first)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// What guidance leads away from [default: the empty prompt]
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,

    /// Steps of the sampler [default: the calibration's, which the plan is made for]
    #[arg(long, value_name = "N", value_parser = parse::count, visible_alias = "num-steps")]
    steps: Option<usize>,

    /// Classifier-free guidance weight, 0 to switch it off [default: the calibration's]
    #[arg(long, value_name = "W", value_parser = parse::not_negative, visible_alias = "cfg-weight")]
    cfg: Option<f32>,

    /// Pixels of the image: 64, or 64x96 (height x width) [default: the start image's, else the
    /// calibration's]
    #[arg(long, value_name = "SIZE", value_parser = parse::image_size, visible_alias = "image-size")]
    size: Option<(usize, usize)>,

    /// Images in one forward pass [default: 8]
    #[arg(long, value_name = "N", value_parser = parse::count, visible_alias = "batch-size")]
    batch: Option<usize>,

    /// Start latents in place of seeded noise: a safetensors file with one tensor [images, channels, h, w], f32
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,

    /// Give every token of a quantized layer's input its own step size, from the values at hand, in place of the plan's
    /// by layer and timestep
    #[arg(long)]
    dynamic: bool,

    /// Folder with classifier.onnx and labels.json, for prompt accuracy [default: the model's own, if it brings one]
    #[arg(long, value_name = "FOLDER")]
    evaluator: Option<PathBuf>,
}

impl ImageArgs {
    /// The settings that the flags ask for; variants are all, from noise.
    pub(super) fn settings(&self) -> GenerateSettings {
        let default = GenerateSettings::default();
        GenerateSettings {
            noise: self.noise.clone(),
            negative_prompt: self.negative_prompt.clone(),
            evaluator: self.evaluator.clone(),
            prompts: match &self.prompts {
                Some(file) => Some(Prompts::File(file.clone())),
                None if self.prompt.is_empty() => None,
                None => Some(Prompts::List(self.prompt.clone())),
            },
            num_steps: self.steps,
            cfg_weight: self.cfg,
            image_size: self.size,
            dynamic: self.dynamic,
            batch_size: self.batch.unwrap_or(default.batch_size),
            ..default
        }
    }
}
