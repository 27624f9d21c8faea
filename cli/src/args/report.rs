//! `taq report`.

use std::path::PathBuf;

use crate::report::Request;

/// Flags of `taq report`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Write one HTML file about a run: images, scores, activations, plan, rounding",
    long_about = "Writes one HTML file about a run folder, as far as its stages are done: scores and images side by side, \
                  maps of the layers' inputs by timestep with a look into every layer, the plan, how rounding went, time \
                  and memory, settings and fingerprints. The file holds all it shows and loads nothing, so it can be \
                  sent to a colleague. No model is loaded. docs/report.md tells what is in it.",
    after_help = "Examples:\n  \
                  taq report --run runs/a                       writes runs/a/report.html\n  \
                  taq report --run runs/a --run runs/b          two runs, and what differs between them\n  \
                  taq report --run runs/a --images 8 --out a.html"
)]
pub(crate) struct ReportArgs {
    /// Run folder to read; may be given several times, to compare runs
    #[arg(long, value_name = "DIR", default_value = "run")]
    run: Vec<PathBuf>,

    /// Prompts to show images of, from the best to the worst at even distances [default: as many as fit into 6 MB]
    #[arg(long, value_name = "N")]
    images: Option<usize>,

    /// File to write [default: report.html in the first run folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl ReportArgs {
    /// What the flags ask for.
    pub(crate) fn request(&self) -> Request {
        Request { runs: self.run.clone(), images: self.images, out: self.out.clone() }
    }
}
