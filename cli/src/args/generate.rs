//! `taq generate`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::manifest::{GenerateSettings, StartImage, Variant};

use super::{ImageArgs, SessionArgs, parse};

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
    #[command(flatten)]
    images: ImageArgs,

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
        let strength = self.strength.unwrap_or_else(StartImage::default_strength);
        GenerateSettings {
            variants: self.variants(),
            img2img: self.img2img.clone().map(|image| StartImage { image, strength }),
            ..self.images.settings()
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
