//! `calibrate`: full-precision trajectories of the model's own sampler.
//!
//! Samples are what the model sees: the latent before each step. The unit of work is a batch of images; the
//! manifest is rewritten after each, and a killed batch is done again with the same bytes.

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use serde_json::json;

use super::samples::{ImageRecord, RunManifest};
use super::session::{Encoded, measured, parts};
use super::taqdit;
use super::{Guidance, Outcome, Sample, Session, load_prompts};
use crate::artifacts::{Document, Parts, StageState, read_document, write_json, write_npz};
use crate::image::Image;
use crate::manifest::{CalibrateSettings, Recipe};
use crate::{Error, Identity, Result, Schedule};

/// Steps of TaQ-DiT's recipe (arXiv 2411.14172, section IV-A).
const TAQ_DIT_STEPS: usize = 100;
/// Guidance weight of TaQ-DiT's recipe.
const TAQ_DIT_CFG: f32 = 1.5;

/// What `calibrate` would write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationSize {
    /// Trajectories.
    pub images: usize,
    /// npz files below `samples/`.
    pub files: usize,
    /// Bytes of all files, images apart.
    pub bytes: u64,
}

/// Settings with every default filled in.
struct Job {
    prompts: Vec<String>,
    images: usize,
    guidance: Guidance,
    cfg_weight: f32,
    schedule: Schedule,
    kept_steps: Vec<usize>,
    image_size: (usize, usize),
    latent: (usize, usize),
    batch_size: usize,
    recipe: Recipe,
    save_conditioning: bool,
    save_images: bool,
}

impl Job {
    fn new(session: &Session, settings: &CalibrateSettings) -> Result<Self> {
        let defaults = session.model.defaults();
        let taq_dit = settings.recipe == Recipe::TaqDit;
        let at_least_one = |name: &str, n: usize| match n {
            0 => Err(Error::settings("calibrate", format!("{name} must be at least 1, not 0"))),
            n => Ok(n),
        };
        let steps = settings.num_steps.unwrap_or(if taq_dit { TAQ_DIT_STEPS } else { defaults.steps });
        let steps = at_least_one("num_steps", steps)?;
        let cfg_weight =
            settings.cfg_weight.unwrap_or(if taq_dit { TAQ_DIT_CFG } else { defaults.cfg_weight });
        let prompts = match &settings.prompts {
            Some(prompts) => load_prompts(prompts)?,
            None => defaults.calibration_prompts.clone(),
        };
        let kept_steps = if taq_dit {
            taqdit::selected_steps(steps, at_least_one("num_selected_steps", settings.num_selected_steps)?)?
        } else {
            (0..steps).collect()
        };
        let image_size = settings.image_size.unwrap_or(defaults.image_size);
        Ok(Self {
            images: at_least_one("num_images", settings.num_images)?,
            guidance: Guidance::new(cfg_weight)?,
            schedule: session.sampler.schedule(steps)?,
            latent: session.latent_size(image_size)?,
            batch_size: at_least_one("batch_size", settings.batch_size)?,
            recipe: settings.recipe,
            save_conditioning: settings.save_conditioning,
            save_images: settings.save_images,
            prompts,
            cfg_weight,
            kept_steps,
            image_size,
        })
    }

    fn prompt(&self, image: usize) -> usize {
        image % self.prompts.len()
    }

    /// What decides the bytes of the samples. The number of images does not: more may follow.
    fn fingerprint(&self, session: &Session) -> Result<Parts> {
        Ok(parts([
            ("model", json!(session.model.spec().fingerprint)),
            ("sampler", session.sampler_identity()?),
            ("seed", json!(session.cx.seed)),
            ("prompts", json!(self.prompts)),
            ("num_steps", json!(self.schedule.steps())),
            ("kept_steps", json!(self.kept_steps)),
            ("cfg_weight", json!(self.cfg_weight)),
            ("image_size", json!(self.image_size)),
            ("batch_size", json!(self.batch_size)),
            ("recipe", json!(self.recipe)),
            ("save_conditioning", json!(self.save_conditioning)),
            ("save_images", json!(self.save_images)),
        ]))
    }
}

/// How much [`calibrate`] would write with these settings.
pub fn calibration_size(session: &Session, settings: &CalibrateSettings) -> Result<CalibrationSize> {
    let job = Job::new(session, settings)?;
    let latent = 4 * (job.latent.0 * job.latent.1 * session.model.spec().latent_channels) as u64;
    let conditioning = if job.save_conditioning || job.recipe == Recipe::TaqDit {
        let one = session.model.condition(&[String::new()])?;
        4 * (one.tokens.size() + one.pooled.size()) as u64
    } else {
        0
    };
    let files = job.images * (job.kept_steps.len() + 1);
    let per_file = if job.save_conditioning { conditioning } else { 0 };
    let mut bytes = files as u64 * (latent + per_file + 1200);
    if job.recipe == Recipe::TaqDit {
        let rows = (job.images * job.kept_steps.len()) as u64;
        bytes += rows * (latent + 8) + 2 * conditioning * job.prompts.len() as u64;
    }
    Ok(CalibrationSize { images: job.images, files, bytes })
}

/// Runs the stage.
pub fn calibrate(session: &Session, settings: &CalibrateSettings) -> Result<Outcome> {
    measured(session, "calibrate", || {
        let job = Job::new(session, settings)?;
        let run = &session.run;
        let outputs = [run.manifest(), run.samples(), run.images(), run.latents(), run.cali_data()];
        let state = run.begin_stage("calibrate", &job.fingerprint(session)?, &outputs, session.force)?;
        let mut manifest = match state {
            StageState::Fresh => None,
            StageState::Resume | StageState::Complete if run.manifest().exists() => {
                Some(read_document::<RunManifest>(&run.manifest())?)
            }
            _ => None,
        }
        .unwrap_or_else(|| new_manifest(session, &job));
        let summary = format!("{} images × {} steps", job.images, job.schedule.steps());
        if manifest.n_completed >= job.images && (job.recipe != Recipe::TaqDit || run.cali_data().exists()) {
            run.finish_stage("calibrate")?;
            return Ok((summary, true));
        }
        manifest.num_images = job.images;
        let encoded = session.encode(&job.prompts)?;
        trajectories(session, &job, &encoded, &mut manifest)?;
        if job.recipe == Recipe::TaqDit {
            taqdit::write(session, &manifest, &job.prompts, &encoded)?;
        }
        run.finish_stage("calibrate")?;
        Ok((summary, false))
    })
}

fn new_manifest(session: &Session, job: &Job) -> RunManifest {
    let spec = session.model.spec();
    RunManifest {
        format: RunManifest::FORMAT.to_owned(),
        n_completed: 0,
        num_images: job.images,
        num_steps: job.schedule.steps(),
        kept_steps: job.kept_steps.clone(),
        sigmas: job.schedule.sigmas.clone(),
        cfg_scale: job.cfg_weight,
        latent_size: job.latent,
        model_version: spec.name.clone(),
        model_fingerprint: spec.fingerprint.clone(),
        seed_base: session.cx.seed,
        images: Vec::new(),
    }
}

fn trajectories(session: &Session, job: &Job, encoded: &Encoded, manifest: &mut RunManifest) -> Result<()> {
    // Where more images were asked for, the last batch may have been a short one; it is done again, so that the
    // bytes do not depend on how often `calibrate` was called.
    let done = manifest.n_completed.min(job.images) / job.batch_size * job.batch_size;
    session.cx.progress.begin("calibrate", job.images as u64);
    session.cx.progress.advance(done as u64, "");
    let mut first = done;
    while first < job.images {
        let last = (first + job.batch_size).min(job.images);
        batch(session, job, encoded, first..last, manifest)?;
        write_json(&session.run.manifest(), manifest)?;
        session.cx.progress.advance((last - first) as u64, "");
        first = last;
    }
    session.cx.progress.end();
    Ok(())
}

fn batch(
    session: &Session,
    job: &Job,
    encoded: &Encoded,
    images: std::ops::Range<usize>,
    manifest: &mut RunManifest,
) -> Result<()> {
    let prompts: Vec<usize> = images.clone().map(|i| job.prompt(i)).collect();
    let start = session.noise(images.clone(), job.latent)?;
    let save = |x: &Array, step: usize, is_final: bool| -> Result<()> {
        for (row, image) in images.clone().enumerate() {
            let sample = Sample {
                x: x.try_index(row as i32)?,
                timestep: 1000.0 * job.schedule.sigmas[step],
                sigma: job.schedule.sigmas[step],
                step,
                image,
                is_final,
            };
            let conditioning =
                if job.save_conditioning { Some(encoded.prompt(job.prompt(image))?) } else { None };
            sample.write(&session.run, conditioning.as_ref())?;
        }
        Ok(())
    };
    let conditioning = encoded.batch(job.guidance, &prompts)?;
    let trajectory = session.trajectory(&job.schedule, job.guidance, &conditioning);
    let latent = trajectory.run(start, &mut Identity, &session.cx, |x, step| {
        if job.kept_steps.binary_search(&step).is_ok() { save(x, step, false) } else { Ok(()) }
    })?;
    save(&latent, job.schedule.steps(), true)?;
    let decoded =
        if job.save_images { Some(Image::from_array(&session.model.decode(&latent)?)?) } else { None };
    for (row, image) in images.clone().enumerate() {
        let latent_path = session.run.latent(image);
        write_npz(&latent_path, |npz| npz.array("latent", &latent.try_index(row as i32)?))?;
        let prompt = &job.prompts[job.prompt(image)];
        let seed = session.cx.seed.wrapping_add(image as u64);
        let filename = match &decoded {
            Some(decoded) => {
                let path = session.run.image(image);
                decoded[row].write_png(&path, &[("prompt", prompt), ("seed", &seed.to_string())])?;
                Some(session.run.relative(&path))
            }
            None => None,
        };
        manifest.images.truncate(image);
        manifest.images.push(ImageRecord {
            image_id: image,
            prompt: prompt.clone(),
            seed,
            cfg_weight: job.cfg_weight,
            num_steps: job.schedule.steps(),
            filename,
            latent_filename: session.run.relative(&latent_path),
        });
    }
    manifest.n_completed = images.end;
    Ok(())
}
