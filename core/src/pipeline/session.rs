//! What every stage works with: a model, a sampler, the run folder, the context.

use std::path::Path;

use mlx_rs::{Array, Dtype};
use serde_json::{Value, json};

use super::meter::Meter;
use super::{Guidance, Trajectory};
use crate::artifacts::{Parts, RunFolder, write_json};
use crate::manifest::PluginChoice;
use crate::noise::initial_noise;
use crate::registry::{Kind, Registry, label};
use crate::{Conditioning, Context, Error, Model, Result, Sampler, Schedule};

/// Prompts encoded at a time.
const PROMPTS: usize = 8;

/// How much of MLX's freed memory is kept for reuse.
const CACHE_LIMIT_BYTES: usize = 256 << 20;

/// Plugins chosen, run folder open.
pub struct Session {
    /// All plugins of the program.
    pub registry: Registry,
    /// The model, in full precision.
    pub model: Box<dyn Model>,
    /// The sampler.
    pub sampler: Box<dyn Sampler>,
    /// The run folder, locked by this process.
    pub run: RunFolder,
    /// Seed, progress, cancellation.
    pub cx: Context,
    /// Whether results of other inputs or settings are thrown away instead of refused.
    pub force: bool,
    sampler_choice: PluginChoice,
}

/// What a stage did.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The stage.
    pub stage: String,
    /// What it did, for people: “16 images, 28 steps”.
    pub summary: String,
    /// Whether everything was there already and nothing was computed.
    pub reused: bool,
    /// Wall time of this call.
    pub seconds: f64,
    /// Peak resident memory of the process during this call.
    pub peak_memory_bytes: usize,
}

impl Session {
    /// Makes the plugins and opens the run folder.
    pub fn open(
        registry: Registry,
        model: &PluginChoice,
        sampler: &PluginChoice,
        run: RunFolder,
        cx: Context,
        force: bool,
    ) -> Result<Self> {
        mlx_rs::memory::set_cache_limit(CACHE_LIMIT_BYTES)?;
        let model = registry.model(&model.name, &model.settings())?;
        let made = registry.sampler(&sampler.name, &sampler.settings(), &model.defaults())?;
        Ok(Self { registry, model, sampler: made, run, cx, force, sampler_choice: sampler.clone() })
    }

    /// A run as it was begun, with its own model, sampler and seed; quiet. For programs that use taq as a library.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such folder, [`Error::StageMissing`] if no stage was run in it; as [`Self::open`].
    pub fn of_run(registry: Registry, root: &Path) -> Result<Self> {
        let run = RunFolder::open(root)?;
        let Some(choice) = run.session_choice()? else {
            return Err(Error::StageMissing {
                stage: "opening",
                needs: "a run".into(),
                run: root.to_owned(),
                first: "calibrate",
            });
        };
        Self::open(registry, &choice.model, &choice.sampler, run, Context::quiet(choice.seed), false)
    }

    /// For fingerprints: a plugin's name, settings, and the crate that it comes from.
    pub fn identity(&self, kind: Kind, choice: &PluginChoice) -> Result<Value> {
        let origin = self.registry.origin(kind, &choice.name)?;
        Ok(json!({ "name": label(&choice.name), "settings": choice.settings(), "origin": origin }))
    }

    /// The way of a batch through a schedule.
    pub(super) fn trajectory<'a>(
        &'a self,
        schedule: &'a Schedule,
        guidance: Guidance,
        conditioning: &'a Conditioning,
    ) -> Trajectory<'a> {
        Trajectory { model: &*self.model, sampler: &*self.sampler, schedule, guidance, conditioning }
    }

    /// Name of the sampler.
    pub fn sampler_name(&self) -> &str {
        &self.sampler_choice.name
    }

    /// For fingerprints: the sampler.
    pub fn sampler_identity(&self) -> Result<Value> {
        self.identity(Kind::Sampler, &self.sampler_choice)
    }

    /// For fingerprints: what an earlier stage of this run depended on; `null` if it left no record.
    pub fn stage_identity(&self, stage: &str) -> Result<Value> {
        Ok(self.run.stage_record(stage)?.map_or(Value::Null, |r| json!(r.fingerprint().as_str())))
    }

    /// Height and width of the latent for an image of this size.
    pub fn latent_size(&self, image: (usize, usize)) -> Result<(usize, usize)> {
        let spec = self.model.spec();
        let unit = spec.vae_factor * spec.patch_size;
        if image.0 == 0 || image.1 == 0 || !image.0.is_multiple_of(unit) || !image.1.is_multiple_of(unit) {
            let reason =
                format!("must be positive multiples of {unit} for this model, not {} × {}", image.0, image.1);
            return Err(Error::settings("image_size", reason));
        }
        Ok((image.0 / spec.vae_factor, image.1 / spec.vae_factor))
    }

    /// Start latents `[images, h, w, channels]`: image `i` has seed `seed + i`, whatever batch it is in.
    pub fn noise(&self, images: std::ops::Range<usize>, latent: (usize, usize)) -> Result<Array> {
        let shape = (latent.0, latent.1, self.model.spec().latent_channels);
        let noise: Vec<Array> = images
            .map(|i| initial_noise(self.cx.seed.wrapping_add(i as u64), shape))
            .collect::<Result<_>>()?;
        Ok(mlx_rs::ops::concatenate(&noise, 0)?)
    }

    /// Prompts encoded with the empty prompt, ready for [`Guidance`]. A few at a time: what the text encoders take in between
    /// does not grow with the number of prompts.
    pub fn encode(&self, prompts: &[String]) -> Result<Encoded> {
        self.encode_against(prompts, "")
    }

    /// The same with another prompt in the empty one's place: what guidance leads away from.
    pub fn encode_against(&self, prompts: &[String], negative: &str) -> Result<Encoded> {
        let condition = |prompts: &[String]| -> Result<Conditioning> {
            let all = self.model.condition(prompts)?;
            mlx_rs::transforms::eval([&all.tokens, &all.pooled])?;
            Ok(all)
        };
        let parts = prompts.chunks(PROMPTS).map(condition).collect::<Result<Vec<_>>>()?;
        let prompts = Conditioning::concat(&parts.iter().collect::<Vec<_>>())?;
        Encoded::new(prompts, condition(&[negative.to_owned()])?)
    }
}

/// Prompts and the empty prompt, encoded.
pub struct Encoded {
    prompts: Conditioning,
    empty: Conditioning,
}

impl Encoded {
    /// Prompts that are encoded already, and one row without a prompt.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are of different sizes.
    pub(super) fn new(prompts: Conditioning, empty: Conditioning) -> Result<Self> {
        let sizes = |c: &Conditioning| [c.tokens.dim(1), c.tokens.dim(2), c.pooled.dim(1)];
        if sizes(&prompts) != sizes(&empty) {
            return Err(Error::Shape {
                what: "the embedding of the prompts (tokens, width, pooled width)".into(),
                expected: format!("{:?}, as without a prompt", sizes(&empty)),
                found: sizes(&prompts).to_vec(),
            });
        }
        mlx_rs::transforms::eval([&prompts.tokens, &prompts.pooled, &empty.tokens, &empty.pooled])?;
        Ok(Self { prompts, empty })
    }

    /// The conditioning of one forward pass for the given prompts.
    pub fn batch(&self, guidance: Guidance, prompts: &[usize]) -> Result<Conditioning> {
        guidance.conditioning(&self.prompts.rows(prompts)?, &self.empty)
    }

    /// One row for each entry: a prompt, or the empty one.
    pub fn rows(&self, rows: &[Option<usize>]) -> Result<Conditioning> {
        let all = Conditioning::concat(&[&self.prompts, &self.empty])?;
        let empty = self.prompts.len();
        all.rows(&rows.iter().map(|row| row.unwrap_or(empty)).collect::<Vec<_>>())
    }

    /// One prompt's own embedding.
    pub fn prompt(&self, index: usize) -> Result<Conditioning> {
        self.prompts.rows(&[index])
    }
}

/// The named inputs and settings of a stage.
pub(super) fn parts<const N: usize>(named: [(&str, Value); N]) -> Parts {
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Runs a stage's work between two readings of clock and memory.
///
/// What it cost is kept beside the stage's record, for the report; a reused stage keeps its old figures. A model in half
/// precision is for `generate` only.
pub(super) fn measured(
    session: &Session,
    stage: &str,
    work: impl FnOnce() -> Result<(String, bool)>,
) -> Result<Outcome> {
    let dtype = session.model.dtype();
    if stage != "generate" && dtype != Dtype::Float32 {
        return Err(Error::Unsupported {
            what: format!(
                "`taq {stage}` computes in float32 and the model is in {}, which is for `generate` and `bench`; leave its \
                 setting `dtype` out, or set it back with --model-config '{{\"dtype\": \"float32\"}}'",
                format!("{dtype:?}").to_lowercase()
            ),
        });
    }
    let meter = Meter::start();
    let (summary, reused) = work()?;
    let (seconds, peak_memory_bytes) = meter.stop();
    let outcome = Outcome { stage: stage.to_owned(), summary, reused, seconds, peak_memory_bytes };
    if !reused {
        write_json(&session.run.stage_cost(stage), &outcome)?;
    }
    Ok(outcome)
}
