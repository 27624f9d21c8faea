//! `taq generate`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::manifest::{GenerateSettings, Prompts, StartImage, Variant};

use super::{SessionArgs, parse};

/// Flags of `taq generate`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Stage 5: generate images with the quantized model and measure them",
    long_about = "Stage 5: generates images with full precision and with the quantized model at the same seeds, and \
                  measures the difference: generated/, report.json. What is quantized comes from \
                  `taq decide` and `taq round`; with --full-precision nothing is needed.\n\n\
                  With --output-image, paints into a file instead, and leaves the run folder as it is: with the \
                  quantized model alone, or with --compare beside full precision. PNG files tell in their texts how \
                  they were made.",
    after_help = "Examples:\n  \
                  taq generate --run runs/a --prompt 'red heart' --prompt 'cat face'\n  \
                  taq generate --run runs/a --prompts prompts_test.txt --batch 8\n  \
                  taq generate --run runs/a --variants quantized       without the plan rounded to nearest\n  \
                  taq generate --output pictures --full-precision --prompt 'slice of pizza' --seed 7\n  \
                  taq generate --run runs/a --prompt 'red heart' --output-image heart.png\n  \
                  taq generate --run runs/a --prompt 'red heart' --output-image both.png --compare --diff-stats\n  \
                  taq generate --run runs/a --prompt 'cat face' --img2img heart.png --strength 0.7 --output-image cat.png"
)]
pub(crate) struct GenerateArgs {
    /// A prompt; may be given several times. Calibration should not have seen it
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Vec<String>,

    /// Prompts: a text file with one a line, or a csv file (column `prompt`, else the first)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// What guidance leads away from [default: the empty prompt]
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,

    /// Begin from this PNG image in place of noise alone
    #[arg(long, value_name = "FILE")]
    img2img: Option<PathBuf>,

    /// Share of the schedule that is run from the image, above 0 and at most 1: the less, the more of it stays
    /// [default: 0.6]
    #[arg(long, value_name = "S", value_parser = parse::strength, requires = "img2img")]
    strength: Option<f32>,

    /// Paint into this PNG file, with several prompts into files numbered after it, and leave the run folder as it is
    #[arg(long, value_name = "FILE")]
    pub(crate) output_image: Option<PathBuf>,

    /// Show all variants side by side in the file of --output-image, and score them
    #[arg(long, requires = "output_image")]
    pub(crate) compare: bool,

    /// Say of every image how far it is from its full-precision twin
    #[arg(long)]
    pub(crate) diff_stats: bool,

    /// Steps of the sampler [default: the calibration's, which the plan is made for]
    #[arg(long, value_name = "N", value_parser = parse::count, visible_alias = "num-steps")]
    steps: Option<usize>,

    /// Classifier-free guidance weight, 0 to switch it off [default: the calibration's]
    #[arg(long, value_name = "W", value_parser = parse::not_negative, visible_alias = "cfg-weight")]
    cfg: Option<f32>,

    /// Pixels of the image: 64, or 64x96 (height x width) [default: the start image's, else the
    /// calibration's]
    #[arg(long = "size", value_name = "SIZE", value_parser = parse::image_size, visible_alias = "image-size")]
    image_size: Option<(usize, usize)>,

    /// Images in one forward pass [default: 8]
    #[arg(long, value_name = "N", value_parser = parse::count, visible_alias = "batch-size")]
    batch: Option<usize>,

    /// Start latents in place of seeded noise: a safetensors file with one tensor [images, channels, h, w], f32
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,

    /// Folder with classifier.onnx and labels.json, for prompt accuracy [default: the model's own, if it brings one]
    #[arg(long, value_name = "FOLDER")]
    evaluator: Option<PathBuf>,

    /// What to run besides full precision [default: what the run folder has the files for]
    #[arg(
        long,
        value_enum,
        value_name = "VARIANTS",
        value_delimiter = ',',
        conflicts_with = "full_precision"
    )]
    variants: Option<Vec<VariantChoice>>,

    /// Run the unquantized model only
    #[arg(long)]
    pub(crate) full_precision: bool,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// What to run besides full precision.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum VariantChoice {
    /// The plan, with every weight rounded to nearest
    Nearest,
    /// The plan, with the weights that `taq round` chose
    Quantized,
}

impl GenerateArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self) -> GenerateSettings {
        let default = GenerateSettings::default();
        GenerateSettings {
            variants: self.variants(),
            noise: self.noise.clone(),
            negative_prompt: self.negative_prompt.clone(),
            img2img: self.img2img.clone().map(|image| StartImage {
                image,
                strength: self.strength.unwrap_or_else(StartImage::default_strength),
            }),
            evaluator: self.evaluator.clone(),
            prompts: match &self.prompts {
                Some(file) => Some(Prompts::File(file.clone())),
                None if self.prompt.is_empty() => None,
                None => Some(Prompts::List(self.prompt.clone())),
            },
            num_steps: self.steps,
            cfg_weight: self.cfg,
            image_size: self.image_size,
            batch_size: self.batch.unwrap_or(default.batch_size),
        }
    }

    fn variants(&self) -> Option<Vec<Variant>> {
        if self.full_precision {
            return Some(vec![Variant::FullPrecision]);
        }
        let variant = |choice: &VariantChoice| match choice {
            VariantChoice::Nearest => Variant::Nearest,
            VariantChoice::Quantized => Variant::Quantized,
        };
        self.variants.as_ref().map(|all| all.iter().map(variant).collect())
    }
}
