//! `bench`: models side by side, at the same prompts and noise: time, memory, and how good their images are.

mod document;
mod latency;
mod reference;
mod subject;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mlx_rs::{Device, DeviceType};

pub use document::{BenchEntry, BenchReport, Latency, Memory, SetDistances};
pub use subject::Subject;

use self::latency::latency;
use super::Session;
use super::generate::{fingerprint, write_image};
use super::generation::Job;
use super::meter::Meter;
use super::scores::{Generated, Judgement, accuracy, compare, judge};
use crate::artifacts::{Document, write_json, write_npz};
use crate::evaluator::{FeatureExtractor, PixelRange, Sight};
use crate::image::Image;
use crate::manifest::GenerateSettings;
use crate::metrics::{
    Features, InceptionScore, frechet_distance, inception_score, kernel_distance, paired_kernel_distance,
};
use crate::{Identity, Result};

/// Settings of [`bench()`].
#[derive(Debug, Clone, PartialEq)]
pub struct BenchSettings {
    /// Prompts, noise, steps and so on; its variants are not looked at.
    pub images: GenerateSettings,
    /// The models, in this order; none: full precision and what the run folder has the files for.
    pub subjects: Vec<Subject>,
    /// Batches before the measured ones.
    pub warm_up: usize,
    /// Images to measure against; default: full precision's, which then is run first.
    pub reference: Option<PathBuf>,
    /// Whether images are only timed.
    pub skip_metrics: bool,
    /// An ONNX graph and the values it takes; default: the evaluator.
    pub features: Option<(PathBuf, PixelRange)>,
}

/// Runs the models one after the other; images, latents and `bench.json` go into `out`.
///
/// # Errors
/// [`crate::Error::Settings`] if the reference was made with other settings; as [`super::generate`].
pub fn bench(session: &Session, settings: &BenchSettings, out: &Path) -> Result<BenchReport> {
    let job = Job::new(session, &settings.images)?;
    let subjects = subjects(session, settings);
    let mut reference = Reference::default();
    if let (Some(folder), false) = (&settings.reference, settings.skip_metrics) {
        let reference::Read { images, paired, twins } = reference::read(session, &job, folder)?;
        reference = Reference { images, paired, twins, name: Some(folder.display().to_string()) };
    }
    let extractor = match &settings.features {
        Some((path, range)) if !settings.skip_metrics => Some(FeatureExtractor::open(path, *range)?),
        _ => None,
    };
    let eyes = Eyes { extractor, job: &job };
    if !settings.skip_metrics && !eyes.are_open() {
        tracing::warn!(
            "no distances of sets: the model has no evaluator for these images; --features names an ONNX file"
        );
    }
    let mut seen = match settings.skip_metrics {
        true => None,
        false => features(&eyes.sights(&reference.images)?)?,
    };
    let mut entries = Vec::new();
    for subject in &subjects {
        let (mut entry, generated, variant) = run(session, settings, &job, subject)?;
        keep(session, &job, subject, &generated, out)?;
        if !settings.skip_metrics {
            let (judged, sights) = eyes.look(&generated)?;
            let found = features(&sights)?;
            entry.prompt_accuracy = judged.as_deref().map(accuracy);
            entry.inception_score = score(&sights)?;
            if let (Some(found), Some(features)) = (&found, &seen) {
                entry.distances = Some(distances(found, features, reference.paired)?);
            }
            if let Some(twins) = &reference.twins {
                entry.paired = Some(compare(variant, &job.prompts, twins, &generated, judged.as_deref())?);
            }
            if reference.name.is_none() {
                // Full precision: what all others are measured against.
                seen = found;
                reference.name = Some(entry.name.clone());
                reference.paired = true;
                reference.twins = Some(generated);
            }
        }
        entries.push(entry);
    }
    let spec = session.model.spec();
    let on_cpu = matches!(Device::try_default()?.get_type()?, DeviceType::Cpu);
    let report = BenchReport {
        format: BenchReport::FORMAT.to_owned(),
        model: spec.name.clone(),
        model_fingerprint: spec.fingerprint.clone(),
        device: if on_cpu { "cpu" } else { "gpu" }.to_owned(),
        dtype: format!("{:?}", session.model.dtype()).to_lowercase(),
        num_steps: job.schedule.steps(),
        cfg_weight: job.cfg_weight,
        image_size: job.image_size,
        batch_size: job.batch_size,
        seed: settings.images.noise.is_none().then_some(session.cx.seed),
        reference: reference.name,
        features: if settings.skip_metrics { None } else { eyes.fingerprint()? },
        entries,
    };
    write_json(&out.join("bench.json"), &report)?;
    Ok(report)
}

/// What images are measured against.
#[derive(Default)]
struct Reference {
    images: Vec<Image>,
    /// Whether each image has the prompt and the noise of the job's at its place.
    paired: bool,
    twins: Option<Generated>,
    name: Option<String>,
}

/// What turns images into features: the extractor that was asked for, else the evaluator, if there is one.
struct Eyes<'a> {
    extractor: Option<FeatureExtractor>,
    job: &'a Job,
}

impl Eyes<'_> {
    fn are_open(&self) -> bool {
        self.extractor.is_some() || self.job.evaluator.is_some()
    }

    fn sights(&self, images: &[Image]) -> Result<Vec<Sight>> {
        match (&self.extractor, &self.job.evaluator) {
            (Some(extractor), _) => extractor.look(images),
            (None, Some(evaluator)) => evaluator.look(images),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// What the evaluator says of images of all prompts, and [`Self::sights`] of them: often the same looks.
    fn look(&self, generated: &Generated) -> Result<(Option<Vec<Judgement>>, Vec<Sight>)> {
        let sights = self.sights(&generated.images)?;
        let judged = match (&self.extractor, &self.job.evaluator) {
            (None, Some(evaluator)) => Some(judge(evaluator.labels(), &self.job.prompts, &sights)),
            _ => self.job.judge(generated)?,
        };
        Ok((judged, sights))
    }

    fn fingerprint(&self) -> Result<Option<String>> {
        match &self.extractor {
            Some(extractor) => extractor.fingerprint().map(Some),
            None => fingerprint(self.job.evaluator.as_ref()),
        }
    }
}

/// The models asked for, each once; full precision first where it is the reference.
fn subjects(session: &Session, settings: &BenchSettings) -> Vec<Subject> {
    let run = &session.run;
    let mut subjects = settings.subjects.clone();
    if subjects.is_empty() {
        subjects.push(Subject::FullPrecision);
        subjects.extend(run.quant_config().exists().then_some(Subject::Nearest));
        subjects.extend(run.weights_config().exists().then_some(Subject::Quantized));
    }
    if settings.reference.is_none() && !settings.skip_metrics {
        subjects.retain(|s| *s != Subject::FullPrecision);
        subjects.insert(0, Subject::FullPrecision);
    }
    let mut names = BTreeSet::new();
    subjects.retain(|s| names.insert(s.to_string()));
    subjects
}

/// One model, timed.
fn run(
    session: &Session,
    settings: &BenchSettings,
    job: &Job,
    subject: &Subject,
) -> Result<(BenchEntry, Generated, crate::manifest::Variant)> {
    let mut made = subject::make(session, subject, job.dynamic)?;
    let name = subject.to_string();
    let task = format!("bench {name}");
    mlx_rs::memory::clear_cache()?;
    mlx_rs::memory::reset_peak_memory()?;
    let meter = Meter::start();
    let generated = match &mut made {
        None => job.paint(session, &task, settings.warm_up, &mut Identity)?,
        Some(made) => made.model.run(|tap| job.paint(session, &task, settings.warm_up, tap))?,
    };
    let (_, peak_rss) = meter.stop();
    let entry = BenchEntry {
        name,
        weight_bits: made.as_ref().map(|m| m.weight_bits),
        activation_bits: made.as_ref().map(|m| m.activation_bits),
        weight_bytes: made.as_ref().map_or_else(|| subject::full_bytes(session), |m| m.weight_bytes),
        latency: latency(&generated.batches, job.batch_size, settings.warm_up),
        memory: Memory { peak_rss, peak_device: mlx_rs::memory::peak_memory()? },
        images: generated.images.len(),
        distances: None,
        inception_score: None,
        prompt_accuracy: None,
        paired: None,
    };
    Ok((entry, generated, made.map_or(crate::manifest::Variant::FullPrecision, |m| m.variant)))
}

/// Images and latents, so that they can be a reference another time.
fn keep(session: &Session, job: &Job, subject: &Subject, generated: &Generated, out: &Path) -> Result<()> {
    let name = subject.to_string();
    // A run folder may lie anywhere; its images go beside the others.
    let plain: String =
        name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    let folder = out.join(plain.trim_matches(['_', '.']));
    for index in 0..generated.images.len() {
        let path = folder.join(format!("{index:04}.png"));
        write_image(session, job, &name, generated, index, &path)?;
    }
    write_npz(&folder.join("latents.npz"), |npz| npz.array("latents", &generated.latents))
}

/// `None` of fewer than two images, which have no covariance.
fn features(sights: &[Sight]) -> Result<Option<Features>> {
    let all = || Features::new(sights.iter().map(|s| s.features.as_slice()));
    (sights.len() >= 2).then(all).transpose()
}

/// `None` where what looked has no classes.
fn score(sights: &[Sight]) -> Result<Option<InceptionScore>> {
    let logits: Vec<&[f32]> = sights.iter().map(|s| s.logits.as_slice()).filter(|l| !l.is_empty()).collect();
    (logits.len() == sights.len() && !logits.is_empty()).then(|| inception_score(&logits)).transpose()
}

/// `paired`: whether each image has the prompt and the noise of the reference's at its place.
fn distances(found: &Features, reference: &Features, paired: bool) -> Result<SetDistances> {
    let kernel = if paired { paired_kernel_distance } else { kernel_distance };
    Ok(SetDistances {
        frechet: frechet_distance(found, reference)?,
        kernel: kernel(found, reference)?,
        reference_images: reference.images(),
    })
}
