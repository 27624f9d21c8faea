//! `generate`: the same prompts and start noise through full precision and the quantized model, measured.

use std::ops::Range;

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, ops};
use serde_json::json;

use super::integers::IntegerTap;
use super::quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
use super::report::{EvaluatorReport, Report};
use super::round::{WeightsConfig, load_plan, visit_rounded};
use super::run::costs;
use super::samples::RunManifest;
use super::scores::{Generated, Judgement, accuracy, compare, judge};
use super::session::{measured, parts};
use super::trajectory::Trajectory;
use super::{Guidance, Outcome, Session, load_prompts};
use crate::artifacts::{Document, StageState, file_hash, read_document, write_json, write_npz};
use crate::evaluator::Evaluator;
use crate::image::{self, Image, SheetLayout};
use crate::manifest::{GenerateSettings, Variant};
use crate::plan::QuantConfig;
use crate::quant::{Clipping, Grid, QuantizedLinear, nearest};
use crate::{Error, Identity, LayerId, Result, RoundedLayer, Schedule, Tap};

/// Prompts when none are given.
const DEFAULT_PROMPTS: usize = 8;

impl Variant {
    /// As in manifests and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::FullPrecision => "full-precision",
            Self::Nearest => "nearest",
            Self::Quantized => "quantized",
        }
    }
}

/// Settings with every default filled in.
struct Job {
    prompts: Vec<String>,
    noise: Array,
    schedule: Schedule,
    guidance: Guidance,
    cfg_weight: f32,
    batch_size: usize,
    variants: Vec<Variant>,
    evaluator: Option<Evaluator>,
}

impl Job {
    fn new(session: &Session, settings: &GenerateSettings) -> Result<Self> {
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
        let size = settings.image_size.or(calibrated_size).unwrap_or(defaults.image_size);
        let steps = settings.num_steps.or(calibrated.map(|m| m.num_steps)).unwrap_or(defaults.steps);
        let cfg_weight =
            settings.cfg_weight.or(calibrated.map(|m| m.cfg_scale)).unwrap_or(defaults.cfg_weight);
        let latent = session.latent_size(size)?;
        Ok(Self {
            noise: match &settings.noise {
                Some(path) => noise_from(path, prompts.len(), latent, session.model.spec().latent_channels)?,
                None => session.noise(0..prompts.len(), latent)?,
            },
            schedule: session.sampler.schedule(steps)?,
            guidance: Guidance::new(cfg_weight)?,
            batch_size: settings.batch_size,
            variants: variants(session, settings)?,
            evaluator: evaluator(session, settings, size)?,
            prompts,
            cfg_weight,
        })
    }

    fn batches(&self) -> impl Iterator<Item = Range<usize>> {
        let (count, size) = (self.prompts.len(), self.batch_size);
        (0..count.div_ceil(size)).map(move |b| b * size..((b + 1) * size).min(count))
    }
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

fn variants(session: &Session, settings: &GenerateSettings) -> Result<Vec<Variant>> {
    let run = &session.run;
    let mut variants = match &settings.variants {
        Some(variants) => variants.clone(),
        None => {
            let plan = run.quant_config().exists().then_some(Variant::Nearest);
            let weights = run.weights_config().exists().then_some(Variant::Quantized);
            plan.into_iter().chain(weights).collect()
        }
    };
    // Full precision comes first, always: it is what the others are measured against.
    variants.retain(|v| *v != Variant::FullPrecision);
    variants.insert(0, Variant::FullPrecision);
    Ok(variants)
}

/// Start latents from a file, NCHW to NHWC.
fn noise_from(
    path: &std::path::Path,
    images: usize,
    latent: (usize, usize),
    channels: usize,
) -> Result<Array> {
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

/// Runs the stage.
pub fn generate(session: &Session, settings: &GenerateSettings) -> Result<Outcome> {
    let outcome = measured(session, "generate", || {
        let run = &session.run;
        let job = Job::new(session, settings)?;
        let plan_needed = job.variants.len() > 1;
        let plan = if plan_needed { Some(load_plan(run, "generate", session.model.spec())?) } else { None };
        let parts = parts([
            ("model", json!(session.model.spec().fingerprint)),
            ("sampler", session.sampler_identity()?),
            ("seed", json!(session.cx.seed)),
            ("plan", session.stage_identity("decide")?),
            ("weights", session.stage_identity("round")?),
            ("prompts", json!(job.prompts)),
            ("noise", json!(settings.noise.as_deref().map(file_hash).transpose()?)),
            ("num_steps", json!(job.schedule.steps())),
            ("cfg_weight", json!(job.cfg_weight)),
            ("latent", json!(&job.noise.shape()[1..])),
            ("batch_size", json!(job.batch_size)),
            ("variants", json!(job.variants)),
            ("evaluator", json!(fingerprint(job.evaluator.as_ref())?)),
        ]);
        // What is generated follows from the rest of the run: it is made anew, never refused.
        let state = run.begin_stage("generate", &parts, &[run.generated(), run.report_json()], true)?;
        let summary = format!("{} images × {} variants", job.prompts.len(), job.variants.len());
        if state == StageState::Complete && run.report_json().exists() {
            return Ok((summary, true));
        }
        let activations = match &plan {
            Some(plan) => Some(ActivationPlan::load(run, session.model.spec(), plan)?),
            None => None,
        };
        let mut all = Vec::new();
        for &variant in &job.variants {
            let generated = match (&activations, &plan) {
                (Some(activations), Some(plan)) if variant != Variant::FullPrecision => {
                    run_quantized(session, &job, variant, plan, activations)?
                }
                _ => run_variant(session, &job, variant, &mut Identity)?,
            };
            save(session, &job, variant, &generated)?;
            all.push(generated);
        }
        write_report(session, settings, &job, plan, &all)?;
        run.finish_stage("generate")?;
        Ok((summary, false))
    })?;
    if !outcome.reused {
        let report: Report = read_document(&session.run.report_json())?;
        write_json(&session.run.report_json(), &Report { stages: costs(session)?, ..report })?;
    }
    Ok(outcome)
}

fn fingerprint(evaluator: Option<&Evaluator>) -> Result<Option<String>> {
    evaluator.map(|e| Ok(e.fingerprint()?.as_str().to_owned())).transpose()
}

/// With integers on the CPU; elsewhere simulated.
fn run_quantized(
    session: &Session,
    job: &Job,
    variant: Variant,
    plan: &QuantConfig,
    activations: &ActivationPlan,
) -> Result<Generated> {
    if mlx_host::on_cpu() {
        let mut tap = IntegerTap::new(activations);
        visit_layers(session, plan, activations, variant, &mut |id, rounded| {
            tap.insert(id, QuantizedLinear::new(&rounded, activations.input(id)?)?);
            Ok(())
        })?;
        return run_variant(session, job, variant, &mut tap);
    }
    let mut layers = QuantizedLayers::new();
    visit_layers(session, plan, activations, variant, &mut |id, rounded| {
        layers.insert(id.clone(), rounded.quantized(activations.input(id)?)?);
        Ok(())
    })?;
    run_variant(session, job, variant, &mut QuantizedTap::new(activations, &layers))
}

/// Shows the integers of a variant's layers, one layer at a time.
fn visit_layers(
    session: &Session,
    plan: &QuantConfig,
    activations: &ActivationPlan,
    variant: Variant,
    visit: &mut dyn FnMut(&LayerId, RoundedLayer) -> Result<()>,
) -> Result<()> {
    let (run, spec) = (&session.run, session.model.spec());
    let config: Option<WeightsConfig> =
        if run.weights_config().exists() { Some(read_document(&run.weights_config())?) } else { None };
    if variant == Variant::Quantized {
        let Some(config) = config else {
            return Err(Error::StageMissing {
                stage: "generate",
                needs: "rounded weights".into(),
                run: run.root().to_owned(),
                first: "round",
            });
        };
        if config.model_fingerprint != spec.fingerprint {
            let reason = "the weights are of another model".into();
            return Err(Error::Stale { path: run.weights_config(), reason });
        }
        let blocks = config.block_metrics.iter();
        let blocks = blocks.filter_map(|m| spec.block_index(&m.block_name).map(|i| (&spec.blocks[i], m)));
        return visit_rounded(run, activations, blocks, visit);
    }
    // The same grids as the rounder's, or plain ones of the plan's bits.
    for layer in spec.layers() {
        let rounded =
            config.as_ref().and_then(|c| c.block_metrics.iter().find_map(|m| m.layers.get(&layer.id)));
        let grid = match (rounded, config.is_some()) {
            (Some(&grid), _) => grid,
            // A block that `round` was told to leave alone stays in full precision here too.
            (None, true) => continue,
            (None, false) => Grid::channel(plan.weight_bits[&layer.id])?,
        };
        visit(&layer.id, nearest(&session.model.weight(&layer.id)?, &grid, Clipping::Mse)?)?;
    }
    Ok(())
}

fn run_variant(session: &Session, job: &Job, variant: Variant, tap: &mut dyn Tap) -> Result<Generated> {
    let progress = &session.cx.progress;
    let encoded = session.encode(&job.prompts)?;
    let (mut latents, mut images) = (Vec::new(), Vec::new());
    progress.begin(&format!("generate {}", variant.name()), job.prompts.len() as u64);
    for batch in job.batches() {
        let prompts: Vec<usize> = batch.clone().collect();
        let conditioning = encoded.batch(job.guidance, &prompts)?;
        let trajectory = Trajectory {
            model: &*session.model,
            sampler: &*session.sampler,
            schedule: &job.schedule,
            guidance: job.guidance,
            conditioning: &conditioning,
        };
        let noise = job.noise.try_index(batch.start as i32..batch.end as i32)?;
        let latent = trajectory.run(noise, tap, &session.cx, |_, _| Ok(()))?;
        images.extend(Image::from_array(&session.model.decode(&latent)?)?);
        latents.push(latent);
        progress.advance(batch.len() as u64, "");
    }
    progress.end();
    Ok(Generated { latents: ops::concatenate(&latents, 0)?, images })
}

fn save(session: &Session, job: &Job, variant: Variant, generated: &Generated) -> Result<()> {
    let folder = session.run.generated().join(variant.name());
    for (index, (image, prompt)) in generated.images.iter().zip(&job.prompts).enumerate() {
        let steps = job.schedule.steps().to_string();
        let cfg = job.cfg_weight.to_string();
        let metadata = [
            ("prompt", prompt.as_str()),
            ("model", &session.model.spec().name),
            ("variant", variant.name()),
            ("steps", &steps),
            ("cfg_weight", &cfg),
        ];
        image.write_png(&session.run.generated_image(variant, index), &metadata)?;
    }
    write_npz(&folder.join("latents.npz"), |npz| npz.array("latents", &generated.latents))
}

fn write_report(
    session: &Session,
    settings: &GenerateSettings,
    job: &Job,
    plan: Option<QuantConfig>,
    all: &[Generated],
) -> Result<()> {
    let run = &session.run;
    let weights: Option<WeightsConfig> =
        if run.weights_config().exists() { Some(read_document(&run.weights_config())?) } else { None };
    let sheet_path = run.generated().join("comparison.png");
    let layout = SheetLayout {
        columns: job.prompts.clone(),
        rows: job.variants.iter().map(|v| row_label(*v, weights.as_ref())).collect(),
        enlarge: 0,
    };
    let rows: Vec<Vec<Image>> = all.iter().map(|g| g.images.clone()).collect();
    image::sheet(&rows, &layout)?.write_png(&sheet_path, &[])?;
    let reference = &all[0];
    let judged = |generated: &Generated| {
        job.evaluator.as_ref().map(|e| judge(e, &job.prompts, &generated.images)).transpose()
    };
    let full_precision = judged(reference)?;
    let variants = job.variants.iter().zip(all).skip(1).map(|(&variant, generated)| {
        let judgements: Option<Vec<Judgement>> = judged(generated)?;
        compare(variant, &job.prompts, reference, generated, judgements.as_deref())
    });
    let report = Report {
        format: Report::FORMAT.to_owned(),
        model: session.model.spec().name.clone(),
        model_fingerprint: session.model.spec().fingerprint.clone(),
        num_steps: job.schedule.steps(),
        cfg_weight: job.cfg_weight,
        seed: settings.noise.is_none().then_some(session.cx.seed),
        plan: plan.map(|p| p.summary),
        evaluator: match (fingerprint(job.evaluator.as_ref())?, full_precision) {
            (Some(fingerprint), Some(judgements)) => {
                Some(EvaluatorReport { fingerprint, full_precision: accuracy(&judgements) })
            }
            _ => None,
        },
        variants: variants.collect::<Result<_>>()?,
        blocks: weights.map(|w| w.block_metrics).unwrap_or_default(),
        // This stage's own cost is not known yet.
        stages: Vec::new(),
        comparison: run.relative(&sheet_path),
    };
    write_json(&run.report_json(), &report)
}

/// The quantized row is named after the rounder.
fn row_label(variant: Variant, weights: Option<&WeightsConfig>) -> String {
    let rounder = weights.and_then(|w| w.rounder["name"].as_str());
    match variant {
        Variant::FullPrecision => "full precision".into(),
        Variant::Quantized => rounder.unwrap_or(variant.name()).to_owned(),
        Variant::Nearest => variant.name().to_owned(),
    }
}
