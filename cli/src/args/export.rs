//! `taq export`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::pipeline::{ExportFormat, ExportSettings, FloatType};

use super::SessionArgs;

/// Flags of `taq export`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Write the rounded weights in a format of other programs",
    long_about = "Writes the weights that `taq round` chose into a new folder, in a format that other programs read \
                  (docs/export.md). Grids of activations stay behind, except with `--format packed`: programs that read \
                  an export compute with inputs in full precision. The run folder is read only.",
    after_help = "Examples:\n  \
                  taq export --run runs/a --format mlx --out exports/a-mlx\n  \
                  taq export --run runs/a --format gguf --out exports/a-gguf\n  \
                  taq export --run runs/a --format packed --out exports/a-packed\n  \
                  taq import exports/a-packed --run runs/b\n  \
                  taq export --run runs/a --format single-file --float-type f16 --out exports/a-file\n  \
                  taq export --run runs/a --format diffusers --out exports/a\n  \
                  taq generate --model exports/a --full-precision --prompt 'red heart' --output-image heart.png"
)]
pub(crate) struct ExportArgs {
    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: FormatChoice,

    /// Folder for it; it must be empty or not there
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,

    /// Type of the transformer's numbers that are no integers [default: that of the model's own files; gguf: f16]
    #[arg(long, value_enum, value_name = "TYPE")]
    float_type: Option<FloatChoice>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// A format of other programs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatChoice {
    /// model.safetensors with packed integers and config.json for `mlx.nn.QuantizedLinear`: the transformer alone
    Mlx,
    /// model.gguf for ComfyUI-GGUF and stable-diffusion.cpp: the transformer alone
    Gguf,
    /// A folder as `StableDiffusion3Pipeline.save_pretrained` writes it, weights dequantized
    Diffusers,
    /// Such a folder with packed integers, all that `taq import` needs, and a loader in Python (numpy)
    Packed,
    /// model.safetensors as Stability AI published SD3, with VAE and CLIP encoders, weights dequantized
    SingleFile,
}

/// A type of floating-point numbers.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FloatChoice {
    /// Half precision
    F16,
    /// The upper half of an f32
    Bf16,
    /// Single precision
    F32,
}

impl ExportArgs {
    /// What to write.
    pub(crate) fn settings(&self) -> ExportSettings {
        ExportSettings {
            format: match self.format {
                FormatChoice::Mlx => ExportFormat::Mlx,
                FormatChoice::Gguf => ExportFormat::Gguf,
                FormatChoice::Diffusers => ExportFormat::Diffusers,
                FormatChoice::Packed => ExportFormat::Packed,
                FormatChoice::SingleFile => ExportFormat::SingleFile,
            },
            float_type: self.float_type.map(|float| match float {
                FloatChoice::F16 => FloatType::F16,
                FloatChoice::Bf16 => FloatType::Bf16,
                FloatChoice::F32 => FloatType::F32,
            }),
        }
    }
}
