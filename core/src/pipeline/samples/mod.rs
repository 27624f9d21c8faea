//! The calibration set on disk: `manifest.json` and `samples/{img:04}_{step:03}.npz`, or what taq's ancestor wrote.

mod cali_data;
mod folder;

use std::path::PathBuf;

use mlx_rs::{Array, ops, transforms};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use cali_data::CaliData;
use folder::{SampleFolder, ancestors_manifest, sample_files};

use super::session::Encoded;
use super::{Guidance, Session};
use crate::artifacts::{Document, Npz, RunFolder, read_document, write_npz};
use crate::{BlockIo, Conditioning, Error, Identity, Model, Result, Tap};

/// One image of the calibration set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    /// Position, from 0.
    pub image_id: usize,
    /// Its prompt.
    pub prompt: String,
    /// Seed of its start latent.
    pub seed: u64,
    /// Classifier-free guidance weight.
    pub cfg_weight: f32,
    /// Steps of the sampler.
    pub num_steps: usize,
    /// PNG below the run folder, if images are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Final latent below the run folder.
    pub latent_filename: String,
}

/// `manifest.json`: what the samples are. It is rewritten after every batch of images and so is the point from
/// which calibration resumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunManifest {
    /// Always [`RunManifest::FORMAT`].
    pub format: String,
    /// Images whose files are all there.
    pub n_completed: usize,
    /// Images asked for.
    pub num_images: usize,
    /// Steps of the sampler.
    pub num_steps: usize,
    /// Steps whose samples are kept, rising; besides them each image has its final latent.
    pub kept_steps: Vec<usize>,
    /// Noise level of each step; the last is 0.
    pub sigmas: Vec<f32>,
    /// Classifier-free guidance weight.
    pub cfg_scale: f32,
    /// Height and width of the latent.
    pub latent_size: (usize, usize),
    /// Name of the model.
    pub model_version: String,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// Seed of image 0; image i has seed_base + i.
    pub seed_base: u64,
    /// The images, completed ones only.
    pub images: Vec<ImageRecord>,
}

impl Document for RunManifest {
    const FORMAT: &'static str = "taq.run_manifest.v1";
    const KIND: &'static str = "run manifest";
}

/// One npz of `samples/`.
pub struct Sample {
    /// Latent before the step, `[h, w, channels]`, f32.
    pub x: Array,
    /// Model timestep (1000 σ).
    pub timestep: f32,
    /// Noise level.
    pub sigma: f32,
    /// Step of the schedule.
    pub step: usize,
    /// Image.
    pub image: usize,
    /// Whether `x` is the final latent.
    pub is_final: bool,
}

impl Sample {
    /// Writes the sample, with the prompt's embedding if it is given.
    pub fn write(&self, run: &RunFolder, conditioning: Option<&Conditioning>) -> Result<()> {
        write_npz(&run.sample(self.image, self.step), |npz| {
            npz.array("x", &self.x)?;
            npz.scalar("timestep", self.timestep)?;
            npz.scalar("sigma", self.sigma)?;
            npz.scalar("step_index", self.step as i32)?;
            npz.scalar("image_id", self.image as i32)?;
            npz.scalar("is_final", self.is_final)?;
            if let Some(conditioning) = conditioning {
                npz.array("conditioning", &conditioning.tokens)?;
                npz.array("pooled_conditioning", &conditioning.pooled)?;
            }
            Ok(())
        })
    }
}

/// The calibration set of a run, opened for reading: taq's own, or one in a layout of its Python ancestor.
pub struct SampleSet {
    /// Its manifest; for a set of the ancestor's, made from what the files say.
    pub manifest: RunManifest,
    source: Source,
}

/// Where the samples are.
enum Source {
    Own(RunFolder),
    Folder(SampleFolder),
    CaliData(CaliData),
}

impl SampleSet {
    /// Opens the set. Taq's own must have been made by the model at hand; the ancestor's do not say.
    ///
    /// # Errors
    /// [`Error::StageMissing`] if there are no samples, [`Error::Stale`] if they are of another model,
    /// [`Error::Malformed`] with the file that is not as expected.
    pub fn open(run: &RunFolder, stage: &'static str, model: &dyn Model) -> Result<Self> {
        let path = run.manifest();
        let foreign = if path.exists() { ancestors_manifest(&path) } else { None };
        if path.exists() && foreign.is_none() {
            return Self::own(run, &model.spec().fingerprint);
        }
        let files = sample_files(run, foreign.as_ref())?;
        if !files.is_empty() {
            let (manifest, folder) = SampleFolder::open(run, files, foreign.as_ref(), model)?;
            return Ok(Self { manifest, source: Source::Folder(folder) });
        }
        if run.cali_data().exists() {
            let (manifest, data) = CaliData::open(&run.cali_data(), model)?;
            return Ok(Self { manifest, source: Source::CaliData(data) });
        }
        Err(Error::StageMissing {
            stage,
            needs: "calibration samples".into(),
            run: run.root().to_owned(),
            first: "calibrate",
        })
    }

    fn own(run: &RunFolder, model_fingerprint: &str) -> Result<Self> {
        let path = run.manifest();
        let manifest: RunManifest = read_document(&path)?;
        if manifest.model_fingerprint != model_fingerprint {
            return Err(Error::Stale {
                path: run.root().to_owned(),
                reason: format!(
                    "its samples were made by model `{}` ({:.12}), the model at hand is {:.12}",
                    manifest.model_version, manifest.model_fingerprint, model_fingerprint
                ),
            });
        }
        if manifest.n_completed == 0 || manifest.kept_steps.is_empty() {
            return Err(Error::malformed(
                RunManifest::KIND,
                &path,
                "no image is completed; run `taq calibrate`",
            ));
        }
        Ok(Self { manifest, source: Source::Own(run.clone()) })
    }

    /// For fingerprints: what the samples depend on, or what is in them.
    pub(super) fn identity(&self, session: &Session) -> Result<Value> {
        match &self.source {
            Source::Own(_) => session.stage_identity("calibrate"),
            Source::Folder(folder) => folder.identity(),
            Source::CaliData(data) => data.identity(),
        }
    }

    /// The prompts of the first images, encoded.
    pub(super) fn encode(&self, session: &Session, images: usize) -> Result<Encoded> {
        let embeddings = match &self.source {
            Source::Own(_) => None,
            Source::Folder(folder) => folder.embeddings(images)?,
            Source::CaliData(data) => Some(data.embeddings(images)?).map(|(p, e)| (p, Some(e))),
        };
        let Some((prompts, empty)) = embeddings else {
            let prompts: Vec<String> =
                self.manifest.images.iter().take(images).map(|i| i.prompt.clone()).collect();
            return session.encode(&prompts);
        };
        let empty = match empty {
            Some(empty) => empty,
            None => session.model.condition(&[String::new()])?,
        };
        Encoded::new(prompts, empty)
    }

    /// How many of the images and which of the kept steps are asked for: the first images, every so many of the steps.
    pub(super) fn chosen(
        &self,
        stage: &str,
        num_images: Option<usize>,
        stride: usize,
    ) -> Result<(usize, Vec<usize>)> {
        let images = num_images.unwrap_or(self.manifest.n_completed);
        if images == 0 || images > self.manifest.n_completed || stride == 0 {
            let reason = format!(
                "num_images is {images} and stride {stride}, expected 1 to {} (calibrated) and 1 or more",
                self.manifest.n_completed
            );
            return Err(Error::settings(stage, reason));
        }
        Ok((images, self.manifest.kept_steps.iter().copied().step_by(stride).collect()))
    }

    /// One latent, `[h, w, channels]`, and the file that it is from.
    fn latent(&self, image: usize, step: usize) -> Result<(Array, PathBuf)> {
        match &self.source {
            Source::Own(run) => {
                let path = run.sample(image, step);
                Ok((Npz::open(&path)?.array("x")?, path))
            }
            Source::Folder(folder) => {
                let path = folder.path(image, step).ok_or_else(|| {
                    let what = format!("there is no sample of image {image} at step {step}");
                    Error::settings("samples", what)
                })?;
                Ok((folder::latent(path)?, path.clone()))
            }
            Source::CaliData(data) => Ok((data.latent(image, step)?, data.path().to_owned())),
        }
    }

    /// Latents of the given (image, step) pairs, `[pairs, h, w, channels]`.
    pub fn latents(&self, pairs: &[(usize, usize)]) -> Result<Array> {
        let (h, w) = self.manifest.latent_size;
        let mut rows = Vec::with_capacity(pairs.len());
        for &(image, step) in pairs {
            let (x, path) = self.latent(image, step)?;
            let shape = x.shape();
            if shape.len() != 3 || shape[..2] != [h as i32, w as i32] {
                let reason = format!("x has shape {shape:?}, expected [{h}, {w}, channels]");
                return Err(Error::malformed("calibration sample", &path, reason));
            }
            rows.push(x);
        }
        Ok(ops::stack(&rows, 0)?)
    }

    /// Shows the tap a step of these images, batch by batch, and calls `after` each. The model's output itself is not
    /// needed: only what the tap evaluates is computed.
    pub(super) fn show<'b, T: Tap>(
        &self,
        session: &Session,
        encoded: &Encoded,
        step: usize,
        batches: impl Iterator<Item = &'b [usize]>,
        tap: &mut T,
        after: impl Fn(&mut T) -> Result<()>,
    ) -> Result<()> {
        let guidance = Guidance::new(self.manifest.cfg_scale)?;
        for batch in batches {
            session.cx.check()?;
            let pairs: Vec<_> = batch.iter().map(|&image| (image, step)).collect();
            let x = self.latents(&pairs)?;
            let conditioning = encoded.batch(guidance, batch)?;
            guidance.velocity(&*session.model, &x, self.timestep(step), &conditioning, tap)?;
            after(tap)?;
        }
        Ok(())
    }

    /// What the first block sees of these samples, evaluated. With guidance every sample has two rows, side by side: with
    /// its prompt, and without.
    pub(super) fn embed(
        &self,
        model: &dyn Model,
        encoded: &Encoded,
        samples: &[(usize, usize)],
    ) -> Result<BlockIo> {
        let branches = 1 + usize::from(self.manifest.cfg_scale > 0.0);
        let each = || samples.iter().flat_map(|&sample| (0..branches).map(move |branch| (sample, branch)));
        let x = self.latents(&each().map(|(sample, _)| sample).collect::<Vec<_>>())?;
        let timesteps: Vec<f32> = each().map(|((_, step), _)| self.timestep(step)).collect();
        let prompts: Vec<_> = each().map(|((image, _), branch)| (branch == 0).then_some(image)).collect();
        let io = model.embed(&x, &timesteps, &encoded.rows(&prompts)?, &mut Identity)?;
        transforms::eval([&io.hidden, &io.temb].into_iter().chain(&io.context))?;
        Ok(io)
    }

    /// Model timestep of a step.
    pub fn timestep(&self, step: usize) -> f32 {
        1000.0 * self.manifest.sigmas[step]
    }
}
