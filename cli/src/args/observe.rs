//! `taq observe`.

use serde_json::{Map, Value};
use taq_core::Result;
use taq_core::manifest::ObserveSettings;
use taq_core::registry::{Kind, Registry};

use super::{SessionArgs, parse, session};

/// Flags of `taq observe`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Stage 2: gather statistics of every layer's input at every timestep",
    long_about = "Stage 2: runs the model on the calibration samples and gathers statistics of every layer's input \
                  at every timestep: activations/layer_statistics.json and activations/timestep_stats/. Needs \
                  `taq calibrate`.",
    after_help = "Examples:\n  \
                  taq observe --run runs/a\n  \
                  taq observe --run runs/a --num-images 8\n  \
                  taq observe --run runs/a --observer avg-minmax --observer-config '{\"momentum\": 0.95}'\n  \
                  taq plugins observer                     the observers of this program"
)]
pub(crate) struct ObserveArgs {
    /// Observer [default: avg-minmax]
    #[arg(long, value_name = "NAME")]
    observer: Option<String>,

    /// Settings of the observer (`taq plugins show NAME`): a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    observer_config: Option<Map<String, Value>>,

    /// Images to look at, from the first [default: all that are calibrated]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    num_images: Option<usize>,

    /// Images in one forward pass; also the batch that running averages are taken over [default: 8]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    batch_size: Option<usize>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

impl ObserveArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self, registry: &Registry) -> Result<ObserveSettings> {
        let default = ObserveSettings::default();
        Ok(ObserveSettings {
            observer: session::choose(
                registry,
                Kind::Observer,
                self.observer.as_deref(),
                self.observer_config.as_ref(),
                default.observer,
            )?,
            num_images: self.num_images,
            batch_size: self.batch_size.unwrap_or(default.batch_size),
        })
    }
}
