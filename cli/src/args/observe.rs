//! `taq observe`.

use serde_json::{Map, Value};
use taq_core::manifest::{ObserveSettings, PluginChoice};
use taq_core::registry::{Kind, Registry};
use taq_core::{Error, Result};

use super::{SessionArgs, parse};

/// Flags of `taq observe`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Stage 2: gather statistics of every layer's input at every timestep",
    long_about = "Stage 2: runs the model on the calibration samples and gathers statistics of every layer's input \
                  at every timestep: activations/layer_statistics.json and activations/timestep_stats/ \
                  (docs/statistics.md). Needs `taq calibrate`, or a folder of calibration samples in the layout of \
                  taq's Python ancestor (docs/samples.md).",
    after_help = "Examples:\n  \
                  taq observe --run runs/a\n  \
                  taq observe --run runs/a --num-images 8 --stride 2\n  \
                  taq observe --run runs/a --observer percentile --observer-config '{\"percentile\": 99.99}'\n  \
                  taq observe --run runs/a --observer avg-minmax,percentile,mse   three in one pass; plans are made from \
                  the first\n  \
                  taq observe --run runs/a --observer minmax,mse --observer-config '{\"mse\": {\"bits\": 4}}'\n  \
                  taq plugins observer                     the observers of this program"
)]
pub(crate) struct ObserveArgs {
    /// Observer, or several: plans are made from the first one's ranges, those of the others are kept beside [default:
    /// avg-minmax]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    observer: Option<Vec<String>>,

    /// Settings of the observer (`taq plugins show NAME`): a JSON object or a .json file. Of several observers: an object
    /// with the settings of each under its name
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    observer_config: Option<Map<String, Value>>,

    /// Images to look at, from the first [default: all that are calibrated]
    #[arg(long, visible_alias = "max-images", value_name = "N", value_parser = parse::count)]
    num_images: Option<usize>,

    /// Look at every N-th timestep only [default: 1]
    #[arg(long, visible_alias = "step-stride", value_name = "N", value_parser = parse::count)]
    stride: Option<usize>,

    /// Layers to look at, by id or the beginning of ids, such as mm0.img; a plan needs all [default: all]
    #[arg(long, value_name = "LAYERS", num_args = 1.., value_delimiter = ',')]
    layers: Option<Vec<String>>,

    /// Images in one forward pass; also the batch that running averages are taken over [default: 8]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    batch_size: Option<usize>,

    /// Bins of the histogram of each layer at each timestep; 0 for none [default: 256]
    #[arg(long, value_name = "N")]
    hist_bins: Option<usize>,

    /// Weight of the past in the shift of post-GELU inputs [default: 0.95]
    #[arg(long, value_name = "X", value_parser = parse::not_negative)]
    shift_momentum: Option<f32>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

impl ObserveArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self, registry: &Registry) -> Result<ObserveSettings> {
        let default = ObserveSettings::default();
        let mut observers = match &self.observer {
            Some(names) => names.iter().map(|name| PluginChoice::named(name)).collect(),
            None => vec![default.observer],
        };
        for observer in &observers {
            registry.origin(Kind::Observer, &observer.name)?;
        }
        if let Some(config) = &self.observer_config {
            configure(&mut observers, config)?;
        }
        let observer = observers.remove(0);
        let settings = ObserveSettings {
            observer,
            beside: observers,
            num_images: self.num_images,
            stride: self.stride.unwrap_or(default.stride),
            layers: self.layers.clone(),
            batch_size: self.batch_size.unwrap_or(default.batch_size),
            hist_bins: self.hist_bins.unwrap_or(default.hist_bins),
            shift_momentum: self.shift_momentum.unwrap_or(default.shift_momentum),
        };
        settings.check(registry)?;
        Ok(settings)
    }
}

/// Gives each observer its settings.
fn configure(observers: &mut [PluginChoice], config: &Map<String, Value>) -> Result<()> {
    let [only] = observers else {
        for (name, settings) in config {
            let observer = observers.iter_mut().find(|o| o.name == *name);
            let (Some(observer), Value::Object(settings)) = (observer, settings) else {
                let reason = format!(
                    "`{name}` is no chosen observer with an object of settings; of several observers, expected \
                     '{{\"NAME\": {{…}}}}'"
                );
                return Err(Error::settings("--observer-config", reason));
            };
            observer.settings.extend(settings.clone());
        }
        return Ok(());
    };
    only.settings.extend(config.clone());
    Ok(())
}
