//! `taq run`.

use std::path::PathBuf;

use serde_json::Value;
use taq_core::manifest::{Pipeline, PluginChoice};
use taq_core::pipeline::STAGES;
use taq_core::registry::{Kind, Registry, near};
use taq_core::{Error, Result};

/// Flags of `taq run`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Execute the stages of a pipeline manifest",
    long_about = "Executes the stages of a pipeline manifest, in order, into its run folder. A stage whose inputs \
                  and settings did not change is reused; one that was killed goes on.",
    after_help = "Examples:\n  \
                  taq run pipelines/emoji-w4a8.toml\n  \
                  taq run pipelines/emoji-w4a8.toml --output runs/b --stages calibrate,observe\n\n\
                  A manifest:\n  \
                  output = \"runs/a\"\n  \
                  [calibrate]\n  num_images = 16\n  \
                  [observe]\n  \
                  [decide]\n  policy = { name = \"baseline-a8\" }\n  \
                  [round]\n  rounder = { name = \"adaround\", iters = 500 }\n  \
                  [generate]\n\n\
                  `taq schema pipeline` lists every field."
)]
pub(crate) struct RunArgs {
    /// Pipeline manifest (TOML)
    #[arg(value_name = "PIPELINE.toml")]
    pub(crate) pipeline: PathBuf,

    /// Run folder [default: the manifest's `output`]
    #[arg(long, value_name = "DIR", visible_alias = "run")]
    pub(crate) output: Option<PathBuf>,

    /// Stages to execute, such as calibrate,observe [default: all that have a table in the manifest]
    #[arg(long, value_name = "STAGES", value_delimiter = ',')]
    pub(crate) stages: Option<Vec<String>>,

    /// Seed [default: the manifest's `seed`]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Draw the figures of all stages when done, as `taq plot` does: activations/plots/
    #[arg(long)]
    pub(crate) plots: bool,

    /// Write a report of all stages when done, as `taq report` does: report.html
    #[arg(long)]
    pub(crate) report: bool,

    /// Throw away results of other inputs or settings instead of refusing to go on
    #[arg(long)]
    pub(crate) force: bool,

    /// Go on with what the run folder already holds. This is always so; the flag is for scripts that say it
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
}

impl RunArgs {
    /// The manifest with the flags applied and every plugin's name and settings checked: what is wrong in the
    /// last stage is said before the first one begins. The manifest's libraries are loaded.
    pub(crate) fn pipeline(&self, registry: &mut Registry) -> Result<Pipeline> {
        let mut pipeline = Pipeline::read(&self.pipeline)?;
        pipeline.plugins.iter().try_for_each(|library| registry.load(library).map(drop))?;
        if let Some(output) = &self.output {
            pipeline.output.clone_from(output);
        }
        pipeline.seed = self.seed.unwrap_or(pipeline.seed);
        if let Some(stages) = &self.stages {
            self.keep(&mut pipeline, stages)?;
        }
        if tables(&pipeline).iter().all(|present| !present) {
            let reason = format!("it has no stage; expected one of the tables {}", STAGES.join(", "));
            return Err(Error::malformed("pipeline manifest", &self.pipeline, reason));
        }
        check(registry, &pipeline)?;
        Ok(pipeline)
    }

    /// Removes the stages that are not asked for.
    fn keep(&self, pipeline: &mut Pipeline, wanted: &[String]) -> Result<()> {
        let known: Vec<String> = STAGES.iter().map(|s| (*s).to_owned()).collect();
        for name in wanted {
            let Some(at) = known.iter().position(|k| k == name) else {
                let meant = near(name, &known)
                    .first()
                    .map_or_else(String::new, |n| format!(" (did you mean `{n}`?)"));
                let reason = format!("there is no stage `{name}`{meant}; there are {}", known.join(", "));
                return Err(Error::settings("--stages", reason));
            };
            if !tables(pipeline)[at] {
                let reason = format!("`{}` has no table [{name}]", self.pipeline.display());
                return Err(Error::settings("--stages", reason));
            }
        }
        let drop = |stage: &str| !wanted.iter().any(|w| w == stage);
        pipeline.calibrate.take_if(|_| drop("calibrate"));
        pipeline.observe.take_if(|_| drop("observe"));
        pipeline.sensitivity.take_if(|_| drop("sensitivity"));
        pipeline.decide.take_if(|_| drop("decide"));
        pipeline.cache.take_if(|_| drop("cache"));
        pipeline.round.take_if(|_| drop("round"));
        pipeline.generate.take_if(|_| drop("generate"));
        Ok(())
    }
}

/// Which stages have a table, in the order of [`STAGES`].
fn tables(pipeline: &Pipeline) -> [bool; 7] {
    [
        pipeline.calibrate.is_some(),
        pipeline.observe.is_some(),
        pipeline.sensitivity.is_some(),
        pipeline.decide.is_some(),
        pipeline.cache.is_some(),
        pipeline.round.is_some(),
        pipeline.generate.is_some(),
    ]
}

/// Checks names, and by making one of each, settings. Models are too large for that: only their name is checked.
fn check(registry: &Registry, pipeline: &Pipeline) -> Result<()> {
    let settings = |choice: &PluginChoice| Value::Object(choice.settings.clone());
    registry.find(Kind::Model, &pipeline.model.name)?;
    registry.find(Kind::Sampler, &pipeline.sampler.name)?;
    if let Some(observe) = &pipeline.observe {
        observe.check(registry)?;
    }
    if let Some(policy) = pipeline.decide.as_ref().map(|s| &s.policy) {
        registry.policy(&policy.name, &settings(policy))?;
    }
    if let Some(rounder) = pipeline.round.as_ref().map(|s| &s.rounder) {
        registry.rounder(&rounder.name, &settings(rounder))?;
    }
    Ok(())
}
