//! Flags that all stages share: the run folder, the model, the sampler, the seed.

use std::path::PathBuf;

use serde_json::{Map, Value};
use taq_core::Result;
use taq_core::artifacts::{RunFolder, SessionChoice};
use taq_core::manifest::PluginChoice;
use taq_core::registry::{Kind, Registry};

use super::parse;

/// The model plugin that reads a `--model` which is a path or a repository.
const MODEL: &str = "sd3";
/// Its setting for where the weights are.
const SOURCE: &str = "source";
/// The sampler that is taken unless another is asked for.
const SAMPLER: &str = "euler";

/// Run folder, model, sampler, seed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Run options")]
pub(crate) struct SessionArgs {
    /// Run folder: all stages read and write here
    #[arg(long, value_name = "DIR", default_value = "run", visible_aliases = ["output", "calib-dir"])]
    pub(crate) run: PathBuf,

    /// Model: a folder or safetensors file, a Hugging Face repository such as
    /// stabilityai/stable-diffusion-3-medium-diffusers, or the name of a model plugin [default: the
    /// run's, else the small emoji model that comes with taq]
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Option<String>,

    /// Settings of the model plugin (`taq plugins show sd3`): a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    pub(crate) model_config: Option<Map<String, Value>>,

    /// Sampler [default: the run's, else euler]
    #[arg(long, value_name = "NAME")]
    pub(crate) sampler: Option<String>,

    /// Settings of the sampler: a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    pub(crate) sampler_config: Option<Map<String, Value>>,

    /// Seed of everything random; image i starts from noise of seed + i [default: the run's, else 0]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Throw away results of other inputs or settings instead of refusing to go on
    #[arg(long)]
    pub(crate) force: bool,

    /// Go on with what the run folder already holds. This is always so; the flag is for scripts that say it
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
}

impl SessionArgs {
    /// Model, sampler and seed: what the flags say, else what the run was made with, else the defaults.
    pub(crate) fn choice(&self, registry: &Registry) -> Result<SessionChoice> {
        let kept = if self.run.is_dir() { RunFolder::open(&self.run)?.session_choice()? } else { None };
        let kept = kept.unwrap_or_else(|| {
            SessionChoice::new(PluginChoice::named(MODEL), PluginChoice::named(SAMPLER), 0)
        });
        let mut model = match self.model.as_deref() {
            Some(name) if registry.find(Kind::Model, name).is_ok() => PluginChoice::named(name),
            Some(source) => {
                let mut choice = PluginChoice::named(MODEL);
                choice.settings.insert(SOURCE.into(), source.into());
                choice
            }
            None => kept.model,
        };
        model.settings.extend(self.model_config.clone().unwrap_or_default());
        registry.find(Kind::Model, &model.name)?;
        let (name, settings) = (self.sampler.as_deref(), self.sampler_config.as_ref());
        let sampler = choose(registry, Kind::Sampler, name, settings, kept.sampler)?;
        Ok(SessionChoice::new(model, sampler, self.seed.unwrap_or(kept.seed)))
    }
}

/// A plugin by the flags for its name and settings; `default` where no name is given. The name is checked.
pub(super) fn choose(
    registry: &Registry,
    kind: Kind,
    name: Option<&str>,
    settings: Option<&Map<String, Value>>,
    default: PluginChoice,
) -> Result<PluginChoice> {
    let mut choice = name.map_or(default, PluginChoice::named);
    choice.settings.extend(settings.cloned().unwrap_or_default());
    registry.origin(kind, &choice.name)?;
    Ok(choice)
}
