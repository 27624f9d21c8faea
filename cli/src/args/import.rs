//! `taq import`.

use std::path::PathBuf;

use taq_core::pipeline::ImportSettings;

use super::SessionArgs;

/// Flags of `taq import`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Read integers that an export kept into a run folder",
    long_about = "Reads what `taq export` wrote with --format packed, mlx or gguf into a run folder, which then holds a plan \
                  (activations/quant_config.json) and rounded weights (quantized_weights/) of the same model and can be \
                  benched, painted with and exported again, to the same bytes (docs/export.md). A packed folder brings its \
                  own plan; the others have none, so that it is taken from the run folder or from --plan.",
    after_help = "Examples:\n  \
                  taq import exports/a-packed --run runs/b\n  \
                  taq import exports/a-mlx --run runs/b --plan runs/a\n  \
                  taq import exports/a-gguf/model.gguf --run runs/c --plan runs/a\n  \
                  taq bench --run runs/b --config fp,quantized"
)]
pub(crate) struct ImportArgs {
    /// What `taq export` wrote: a folder, or a GGUF file
    #[arg(value_name = "EXPORT")]
    from: PathBuf,

    /// Run folder of the same model whose plan is taken, for exports without one
    #[arg(long, value_name = "DIR")]
    plan: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

impl ImportArgs {
    /// The settings.
    pub(crate) fn settings(&self) -> ImportSettings {
        ImportSettings { from: self.from.clone(), plan: self.plan.clone() }
    }
}
