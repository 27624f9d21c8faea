//! `taq bench`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::evaluator::PixelRange;
use taq_core::pipeline::{BenchSettings, Subject};

use super::{ImageArgs, SessionArgs};

/// Flags of `taq bench`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Measure models side by side: time, memory, and how good their images are",
    long_about = "Paints the same prompts from the same noise with several models, one after the other, and puts into one \
                  table what each took and how good its images are: seconds an image, peak memory, the size of its \
                  weights, distances of the images as a set from the reference's (Fréchet and kernel distance of features, \
                  FID and KID where the features are Inception's), inception score, prompt accuracy, and PSNR, SSIM \
                  and latent error against the reference's images one by one (docs/bench.md). The reference is full \
                  precision, or a folder of images made at the same settings. Writes bench.json, bench.md and the images; \
                  the rest of the run folder is read only.",
    after_help = "Examples:\n  \
                  taq bench --run runs/a                                 full precision and what the run holds\n  \
                  taq bench --run runs/a --config fp,w4a8,quantized,runs/b --prompts prompts_test.txt\n  \
                  taq bench --run runs/a --config quantized --reference-dir runs/a/bench/fp\n  \
                  taq bench --run runs/a --features inception.onnx --prompts captions.csv --batch 16\n  \
                  taq bench --config fp --skip-metrics --batch 1 --warmup 2"
)]
pub(crate) struct BenchArgs {
    /// Models: `fp`, `nearest` or `quantized` of the run, widths such as `w4a8` (rounded to nearest, over the ranges of the
    /// run's plan), or the folders of other runs [default: fp and what the run holds]
    #[arg(long, value_name = "MODELS", value_delimiter = ',', value_parser = subject)]
    config: Vec<Subject>,

    #[command(flatten)]
    images: ImageArgs,

    /// Batches before those that are measured
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,

    /// Measure against the PNG files of this folder [default: against full precision, run first]
    #[arg(long, value_name = "FOLDER", conflicts_with = "skip_metrics")]
    reference_dir: Option<PathBuf>,

    /// Time and memory only
    #[arg(long)]
    skip_metrics: bool,

    /// Features for the distances: an ONNX file with one input [n, 3, height, width] and an output `features`, and for the
    /// inception score `logits` [default: the evaluator's]
    #[arg(long, value_name = "FILE", conflicts_with = "skip_metrics")]
    features: Option<PathBuf>,

    /// What values the pixels have that --features takes
    #[arg(long, value_enum, value_name = "RANGE", requires = "features", default_value = "unit")]
    feature_range: RangeChoice,

    /// Folder for bench.json, bench.md and the images [default: bench/ in the run folder]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// Values of pixels.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RangeChoice {
    /// 0 to 1 (pytorch-fid)
    Unit,
    /// -1 to 1
    Signed,
    /// 0 to 255 (torch-fidelity)
    Bytes,
}

fn subject(text: &str) -> Result<Subject, String> {
    text.parse()
}

impl BenchArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self) -> BenchSettings {
        let range = match self.feature_range {
            RangeChoice::Unit => PixelRange::Unit,
            RangeChoice::Signed => PixelRange::Signed,
            RangeChoice::Bytes => PixelRange::Bytes,
        };
        BenchSettings {
            images: self.images.settings(),
            subjects: self.config.clone(),
            warm_up: self.warmup,
            reference: self.reference_dir.clone(),
            skip_metrics: self.skip_metrics,
            features: self.features.clone().map(|file| (file, range)),
        }
    }
}
