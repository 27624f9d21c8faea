//! `taq plot`.

use std::path::PathBuf;

use crate::plot::{Format, Request};

/// Flags of `taq plot`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Draw figures of what a run found: activations, plan, rounding",
    long_about = "Draws figures from the files of a run folder, as far as its stages are done: how the layers' inputs \
                  change over time, what a plan makes of them, how rounding went. No model is loaded. docs/plots.md \
                  tells what each figure shows; `taq plot --list` names them.",
    after_help = "Examples:\n  \
                  taq plot --run runs/a                                    everything usual\n  \
                  taq plot --run runs/a --layers mm0.img mm3.txt.mlp.fc2   a look at some layers\n  \
                  taq plot --run runs/a --snapshot-steps 0 12 24 27\n  \
                  taq plot --run runs/a --figures bits --quant-config plan.json\n  \
                  taq plot --run runs/a --figures loss-curves,held-out-error --format svg --out paper/figures"
)]
pub(crate) struct PlotArgs {
    /// Run folder to read
    #[arg(long, value_name = "DIR", default_value = "run")]
    pub(crate) run: PathBuf,

    /// Figures to draw, such as bits,variability [default: all that the run has data for]
    #[arg(long, value_name = "FIGURES", value_delimiter = ',', num_args = 1..)]
    figures: Option<Vec<String>>,

    /// Layers of the figures that show one layer each: ids, beginnings such as mm0 or mm0.img, old names such as
    /// mm_00_img, or `all` [default: a few whose range changes most]
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', num_args = 1..)]
    layers: Option<Vec<String>>,

    /// Steps of the figures that show a few steps [default: 5 from first to last]
    #[arg(long, value_name = "STEPS", value_delimiter = ',', num_args = 1..)]
    snapshot_steps: Option<Vec<usize>>,

    /// Plan to draw in place of the run's own
    #[arg(long, value_name = "FILE")]
    quant_config: Option<PathBuf>,

    /// Draw also the whole distribution of each layer over time
    #[arg(long)]
    plot_distributions: bool,

    /// Formats of the files
    #[arg(long, value_name = "FORMATS", value_enum, value_delimiter = ',', default_value = "png")]
    format: Vec<Format>,

    /// Folder of the files [default: activations/plots in the run folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Only list the figures
    #[arg(long)]
    pub(crate) list: bool,
}

impl PlotArgs {
    /// What the flags ask for.
    pub(crate) fn request(&self) -> Request {
        Request {
            figures: self.figures.clone(),
            layers: self.layers.clone(),
            snapshot_steps: self.snapshot_steps.clone(),
            quant_config: self.quant_config.clone(),
            distributions: self.plot_distributions,
            formats: self.format.clone(),
            out: self.out.clone(),
        }
    }
}
