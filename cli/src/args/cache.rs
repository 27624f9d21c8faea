//! `taq cache`.

use taq_core::manifest::CacheSettings;

use super::{SessionArgs, parse};

/// Flags of `taq cache`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Write what goes in and out of every block to disk, for other tools or for `round --cache`",
    long_about = "Writes what goes into every block and what comes out of it, for every calibration sample: \
                  adaround_cache/metadata.json and adaround_cache/samples/. `taq round` needs no cache; it is for \
                  tools that read this format, and for learning a few blocks of a large model again and again. \
                  Needs `taq calibrate`.",
    after_help = "Examples:\n  \
                  taq cache --run runs/a --num-images 5 --stride 3\n  \
                  taq cache --run runs/a --blocks mm0,mm1\n  \
                  taq round --run runs/a --cache runs/a/adaround_cache --blocks mm0"
)]
pub(crate) struct CacheArgs {
    /// Images to keep, from the first [default: all that are calibrated]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    num_images: Option<usize>,

    /// Keep every N-th timestep only [default: 1]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    stride: Option<usize>,

    /// Blocks to keep, such as mm0,mm1 [default: all]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    blocks: Option<Vec<String>>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

impl CacheArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self) -> CacheSettings {
        CacheSettings {
            num_images: self.num_images,
            stride: self.stride.unwrap_or(CacheSettings::default().stride),
            blocks: parse::blocks(self.blocks.as_deref()),
        }
    }
}
