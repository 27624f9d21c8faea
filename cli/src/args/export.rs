//! `taq export`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::pipeline::ExportFormat;

use super::SessionArgs;

/// Flags of `taq export`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Write the rounded weights in a format of other programs",
    long_about = "Writes the weights that `taq round` chose into a new folder, in a format that other programs read \
                  (docs/export.md). Grids of activations stay behind: programs that read an export compute with inputs \
                  in full precision. The run folder is read only.",
    after_help = "Examples:\n  \
                  taq export --run runs/a --format mlx --out exports/a-mlx\n  \
                  taq export --run runs/a --format gguf --out exports/a-gguf\n  \
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
}

impl ExportArgs {
    /// What to write.
    pub(crate) fn format(&self) -> ExportFormat {
        match self.format {
            FormatChoice::Mlx => ExportFormat::Mlx,
            FormatChoice::Gguf => ExportFormat::Gguf,
            FormatChoice::Diffusers => ExportFormat::Diffusers,
        }
    }
}
