//! Flags that all stages share: the run folder, the model, the sampler, the seed.

use std::path::PathBuf;

use serde_json::{Map, Value};
use taq_core::Result;
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
    /// small emoji model that comes with taq]
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Option<String>,

    /// Settings of the model plugin (`taq plugins show sd3`): a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    pub(crate) model_config: Option<Map<String, Value>>,

    /// Sampler [default: euler]
    #[arg(long, value_name = "NAME")]
    pub(crate) sampler: Option<String>,

    /// Settings of the sampler: a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    pub(crate) sampler_config: Option<Map<String, Value>>,

    /// Seed of everything random; image i starts from noise of seed + i
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Throw away results of other inputs or settings instead of refusing to go on
    #[arg(long)]
    pub(crate) force: bool,

    /// Go on with what the run folder already holds. This is always so; the flag is for scripts that say it
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
}

impl SessionArgs {
    /// The model plugin: `--model` names one, or says where the weights of the default one are.
    pub(crate) fn model(&self, registry: &Registry) -> Result<PluginChoice> {
        let mut choice = match self.model.as_deref() {
            Some(name) if registry.find(Kind::Model, name).is_ok() => PluginChoice::named(name),
            Some(source) => {
                let mut choice = PluginChoice::named(MODEL);
                choice.settings.insert(SOURCE.into(), source.into());
                choice
            }
            None => PluginChoice::named(MODEL),
        };
        choice.settings.extend(self.model_config.clone().unwrap_or_default());
        registry.find(Kind::Model, &choice.name)?;
        Ok(choice)
    }

    /// The sampler plugin.
    pub(crate) fn sampler(&self, registry: &Registry) -> Result<PluginChoice> {
        choose(
            registry,
            Kind::Sampler,
            self.sampler.as_deref(),
            self.sampler_config.as_ref(),
            PluginChoice::named(SAMPLER),
        )
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
    registry.find(kind, &choice.name)?;
    Ok(choice)
}
