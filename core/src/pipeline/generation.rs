//! What is to be painted, with every default filled in, and one model painting it: shared by `generate`, single
//! pictures and `bench`.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, ops};

use super::samples::RunManifest;
use super::scores::{BatchTime, Generated, Judgement, judge};
use super::{Guidance, Session, load_prompts};
use crate::artifacts::{file_hash, read_document};
use crate::evaluator::Evaluator;
use crate::image::Image;
use crate::manifest::{GenerateSettings, StartImage};
use crate::{Error, Result, Schedule, Tap};

/// Prompts when none are given.
const DEFAULT_PROMPTS: usize = 8;

/// Settings with every default filled in.
pub(super) struct Job {
    pub(super) prompts: Vec<String>,
    pub(super) negative: String,
    pub(super) noise: Array,
    pub(super) noise_hash: Option<String>,
    pub(super) start: Option<Start>,
    pub(super) schedule: Schedule,
    pub(super) guidance: Guidance,
    pub(super) cfg_weight: f32,
    pub(super) dynamic: bool,
    pub(super) image_size: (usize, usize),
    pub(super) batch_size: usize,
    pub(super) evaluator: Option<Evaluator>,
}

/// Where a trajectory begins if not in pure noise.
pub(super) struct Start {
    /// `[1, h, w, channels]`.
    latent: Array,
    pub(super) step: usize,
    pub(super) strength: f32,
    pub(super) hash: String,
}

impl Job {
    pub(super) fn new(session: &Session, settings: &GenerateSettings) -> Result<Self> {
        let run = &session.run;
        let calibrated: Option<RunManifest> =
            if run.manifest().exists() { Some(read_document(&run.manifest())?) } else { None };
        let defaults = session.model.defaults();
        let prompts = match &settings.prompts {
            Some(prompts) => load_prompts(prompts)?,
            None => defaults.calibration_prompts.iter().take(DEFAULT_PROMPTS).cloned().collect(),
        };
        if settings.batch_size == 0 {
            return Err(Error::settings("generate", "batch_size must be at least 1, not 0"));
        }
        let calibrated = calibrated.as_ref();
        let factor = session.model.spec().vae_factor;
        let calibrated_size = calibrated.map(|m| (m.latent_size.0 * factor, m.latent_size.1 * factor));
        let image = settings.img2img.as_ref().map(read_start).transpose()?;
        let image_size = match (&image, settings.image_size) {
            (Some(image), Some(size)) if size != (image.height(), image.width()) => {
                let reason = format!(
                    "{} × {}, and the start image has {} × {} pixels; leave it away or scale the image",
                    size.0,
                    size.1,
                    image.height(),
                    image.width()
                );
                return Err(Error::settings("image_size", reason));
            }
            (Some(image), _) => (image.height(), image.width()),
            (None, size) => size.or(calibrated_size).unwrap_or(defaults.image_size),
        };
        let steps = settings.num_steps.or(calibrated.map(|m| m.num_steps)).unwrap_or(defaults.steps);
        let cfg_weight =
            settings.cfg_weight.or(calibrated.map(|m| m.cfg_scale)).unwrap_or(defaults.cfg_weight);
        let latent = session.latent_size(image_size)?;
        let schedule = session.sampler.schedule(steps)?;
        let start = match (&settings.img2img, image) {
            (Some(start), Some(image)) => Some(Start {
                latent: session.model.encode(&image.to_array()?)?,
                step: first_step(schedule.steps(), start.strength),
                strength: start.strength,
                hash: file_hash(&start.image)?,
            }),
            _ => None,
        };
        Ok(Self {
            noise: match &settings.noise {
                Some(path) => noise_from(path, prompts.len(), latent, session.model.spec().latent_channels)?,
                None => session.noise(0..prompts.len(), latent)?,
            },
            noise_hash: settings.noise.as_deref().map(file_hash).transpose()?,
            start,
            schedule,
            guidance: Guidance::new(cfg_weight)?,
            batch_size: settings.batch_size,
            evaluator: evaluator(session, settings, image_size)?,
            negative: settings.negative_prompt.clone().unwrap_or_default(),
            prompts,
            cfg_weight,
            dynamic: settings.dynamic,
            image_size,
        })
    }

    /// Images by batch.
    pub(super) fn batches(&self) -> impl Iterator<Item = Range<usize>> {
        let (count, size) = (self.prompts.len(), self.batch_size);
        (0..count.div_ceil(size)).map(move |b| b * size..((b + 1) * size).min(count))
    }

    /// Steps that are run of each image: all, but from a start image.
    pub(super) fn steps_run(&self) -> usize {
        self.schedule.steps() - self.first()
    }

    fn first(&self) -> usize {
        self.start.as_ref().map_or(0, |s| s.step)
    }

    /// Latents of some images where their trajectories begin.
    fn begin(&self, session: &Session, images: &Range<usize>) -> Result<Array> {
        let noise = self.noise.try_index(images.start as i32..images.end as i32)?;
        match &self.start {
            None => Ok(noise),
            Some(start) => {
                session.sampler.add_noise(&start.latent, &noise, self.schedule.at(start.step).sigma)
            }
        }
    }

    /// All images, batch after batch, after `warm_up` times the first batch, which leaves nothing.
    pub(super) fn paint(
        &self,
        session: &Session,
        name: &str,
        warm_up: usize,
        tap: &mut dyn Tap,
    ) -> Result<Generated> {
        let progress = &session.cx.progress;
        let encoded = session.encode_against(&self.prompts, &self.negative)?;
        let (mut latents, mut images, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        let all: Vec<Range<usize>> = self.batches().collect();
        let warming = all.iter().take(1).cycle().take(warm_up);
        let work = warming.map(|b| (b, false)).chain(all.iter().map(|b| (b, true)));
        let count: usize = work.clone().map(|(b, _)| b.len()).sum();
        let steps = self.schedule.steps();
        // A unit is a step of an image.
        progress.begin(name, (count * self.steps_run()) as u64);
        for (batch, kept) in work {
            let prompts: Vec<usize> = batch.clone().collect();
            let conditioning = encoded.batch(self.guidance, &prompts)?;
            let begun = self.begin(session, batch)?;
            mlx_rs::transforms::eval([&conditioning.tokens, &conditioning.pooled, &begun])?;
            let trajectory = session.trajectory(&self.schedule, self.guidance, &conditioning);
            let note = |step: usize| {
                let warm = if kept { "" } else { "warm-up, " };
                let (first, last) = (batch.start + 1, batch.end);
                let which =
                    if last > first { format!("images {first}–{last}") } else { format!("image {first}") };
                format!("{warm}{which}, step {step} of {steps}")
            };
            let clock = Instant::now();
            let first = self.first();
            let latent = trajectory.run_from(first, begun, tap, &session.cx, |_, step| {
                // Before a step, the one before it is done.
                if step > first {
                    progress.advance(batch.len() as u64, &note(step));
                }
                Ok(())
            })?;
            let decoded = Image::from_array(&session.model.decode(&latent)?)?;
            progress.advance(batch.len() as u64, &note(steps));
            if kept {
                batches.push(BatchTime { images: batch.len(), seconds: clock.elapsed().as_secs_f64() });
                images.extend(decoded);
                latents.push(latent);
            }
        }
        progress.end();
        Ok(Generated { latents: ops::concatenate(&latents, 0)?, images, batches })
    }

    /// What the evaluator, if there is one, says of images of all prompts.
    pub(super) fn judge(&self, generated: &Generated) -> Result<Option<Vec<Judgement>>> {
        let judged = |e: &Evaluator| Ok(judge(e.labels(), &self.prompts, &e.look(&generated.images)?));
        self.evaluator.as_ref().map(judged).transpose()
    }

    /// What a PNG file says of image `index` besides its pixels: everything that it takes to paint it again.
    pub(super) fn texts(
        &self,
        session: &Session,
        variant: &str,
        index: usize,
    ) -> Vec<(&'static str, String)> {
        let model = &session.model.spec().name;
        let (height, width) = self.image_size;
        let steps = self.schedule.steps();
        let mut texts = vec![
            ("prompt", self.prompts[index].clone()),
            ("model", model.clone()),
            ("variant", variant.to_owned()),
            ("sampler", session.sampler_name().to_owned()),
            ("steps", steps.to_string()),
            ("cfg_weight", self.cfg_weight.to_string()),
            ("size", format!("{width}x{height}")),
            ("software", concat!("taq ", env!("CARGO_PKG_VERSION")).to_owned()),
        ];
        if self.dynamic {
            texts.push(("inputs", "dynamic".to_owned()));
        }
        if !self.negative.is_empty() {
            texts.push(("negative_prompt", self.negative.clone()));
        }
        match &self.noise_hash {
            Some(hash) => texts.push(("noise", format!("{hash}, image {index}"))),
            None => texts.push(("seed", session.cx.seed.wrapping_add(index as u64).to_string())),
        }
        if let Some(start) = &self.start {
            texts.push(("img2img", start.hash.clone()));
            texts.push(("strength", start.strength.to_string()));
        }
        texts
    }
}

/// The first step from an image, as diffusers' `StableDiffusion3Img2ImgPipeline.get_timesteps` counts.
fn first_step(steps: usize, strength: f32) -> usize {
    let run = (steps as f32 * strength).min(steps as f32);
    ((steps as f32 - run) as usize).min(steps.saturating_sub(1))
}

fn read_start(start: &StartImage) -> Result<Image> {
    if !(start.strength > 0.0 && start.strength <= 1.0) {
        let reason = format!("must be more than 0 and at most 1, not {}", start.strength);
        return Err(Error::settings("strength", reason));
    }
    Ok(Image::read_png(&start.image)?.0)
}

/// The evaluator that was asked for, or the model's own where it takes images of this size.
fn evaluator(
    session: &Session,
    settings: &GenerateSettings,
    size: (usize, usize),
) -> Result<Option<Evaluator>> {
    let own = session.model.evaluator();
    let Some(folder) = settings.evaluator.as_deref().or(own.as_deref()) else { return Ok(None) };
    let evaluator = Evaluator::open(folder)?;
    match evaluator.image_size() {
        Some(wanted) if wanted != size => {
            let reason = format!(
                "it takes images of {} × {} pixels, and these have {} × {}",
                wanted.0, wanted.1, size.0, size.1
            );
            if settings.evaluator.is_some() {
                return Err(Error::settings("evaluator", reason));
            }
            tracing::warn!("no prompt accuracy: the model's evaluator is not used, for {reason}");
            Ok(None)
        }
        _ => Ok(Some(evaluator)),
    }
}

/// Start latents from a file, NCHW to NHWC.
fn noise_from(path: &Path, images: usize, latent: (usize, usize), channels: usize) -> Result<Array> {
    let kind = "file of start latents";
    if !path.exists() {
        return Err(Error::io("read", path)(std::io::ErrorKind::NotFound.into()));
    }
    let tensors = Array::load_safetensors(path).map_err(|e| Error::malformed(kind, path, e))?;
    let mut tensors = tensors.into_values();
    let (Some(noise), None) = (tensors.next(), tensors.next()) else {
        return Err(Error::malformed(kind, path, "expected exactly one tensor"));
    };
    let expected = [images as i32, channels as i32, latent.0 as i32, latent.1 as i32];
    if noise.ndim() != 4 || noise.shape()[1..] != expected[1..] || noise.dim(0) < expected[0] {
        let reason = format!("expected shape {expected:?} (more images will do), found {:?}", noise.shape());
        return Err(Error::malformed(kind, path, reason));
    }
    Ok(noise.try_index(..images as i32)?.transpose_axes(&[0, 2, 3, 1])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_image_skips_the_steps_that_diffusers_skips() {
        // int(max(n − min(n · strength, n), 0)), Python.
        for (steps, strength, expected) in [
            (28, 1.0, 0),
            (28, 0.6, 11),
            (28, 0.5, 14),
            (50, 0.3, 35),
            (10, 0.01, 9),
            (4, 0.75, 1),
            (1, 0.2, 0),
        ] {
            assert_eq!(first_step(steps, strength), expected, "{steps} steps, strength {strength}");
        }
    }
}
