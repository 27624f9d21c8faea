//! `generate`: the same prompts and start noise through full precision and the quantized model, measured.

use std::path::Path;

use serde_json::json;

use super::execute::QuantizedModel;
use super::generation::Job;
use super::quantized::ActivationPlan;
use super::report::{EvaluatorReport, Report};
use super::round::{WeightsConfig, effective_plan, visit_rounded, visit_weight_only};
use super::run::costs;
use super::scores::{Generated, accuracy, compare};
use super::session::{measured, parts};
use super::{Outcome, Session};
use crate::artifacts::{Document, RunFolder, StageState, read_document, write_json, write_npz};
use crate::evaluator::Evaluator;
use crate::image::{self, Image, SheetLayout};
use crate::manifest::{GenerateSettings, Variant};
use crate::plan::QuantConfig;
use crate::quant::Grid;
use crate::{Identity, Result};

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

/// Full precision, then what else is to be run.
pub(super) fn variants(session: &Session, settings: &GenerateSettings) -> Result<Vec<Variant>> {
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

/// Runs the stage.
pub fn generate(session: &Session, settings: &GenerateSettings) -> Result<Outcome> {
    let outcome = measured(session, "generate", || {
        let run = &session.run;
        let job = Job::new(session, settings)?;
        let variants = variants(session, settings)?;
        let plan_needed = variants.len() > 1;
        let plan =
            if plan_needed { Some(effective_plan(run, "generate", session.model.spec())?) } else { None };
        let parts = parts([
            ("model", json!(session.model.spec().fingerprint)),
            ("dtype", json!(format!("{:?}", session.model.dtype()))),
            ("sampler", session.sampler_identity()?),
            ("seed", json!(session.cx.seed)),
            ("plan", session.stage_identity("decide")?),
            ("weights", session.stage_identity("round")?),
            ("prompts", json!(job.prompts)),
            ("negative_prompt", json!(job.negative)),
            ("noise", json!(job.noise_hash)),
            ("img2img", json!(job.start.as_ref().map(|s| (&s.hash, s.strength)))),
            ("num_steps", json!(job.schedule.steps())),
            ("cfg_weight", json!(job.cfg_weight)),
            ("latent", json!(&job.noise.shape()[1..])),
            ("batch_size", json!(job.batch_size)),
            ("dynamic", json!(job.dynamic)),
            ("variants", json!(variants)),
            ("evaluator", json!(fingerprint(job.evaluator.as_ref())?)),
        ]);
        // What is generated follows from the rest of the run: it is made anew, never refused.
        let state = run.begin_stage("generate", &parts, &[run.generated(), run.report_json()], true)?;
        let summary = format!("{} images × {} variants", job.prompts.len(), variants.len());
        if state == StageState::Complete && run.report_json().exists() {
            return Ok((summary, true));
        }
        let mut all = Vec::new();
        for &variant in &variants {
            let generated = paint_variant(session, &job, variant, plan.as_ref())?;
            save(session, &job, variant, &generated)?;
            all.push(generated);
        }
        write_report(session, settings, &job, &variants, plan, &all)?;
        run.finish_stage("generate")?;
        Ok((summary, false))
    })?;
    if !outcome.reused {
        let report: Report = read_document(&session.run.report_json())?;
        write_json(&session.run.report_json(), &Report { stages: costs(session)?, ..report })?;
    }
    Ok(outcome)
}

/// One variant of this run.
pub(super) fn paint_variant(
    session: &Session,
    job: &Job,
    variant: Variant,
    plan: Option<&QuantConfig>,
) -> Result<Generated> {
    let name = format!("generate {}", variant.name());
    let Some(plan) = plan.filter(|_| variant != Variant::FullPrecision) else {
        return job.paint(session, &name, 0, &mut Identity);
    };
    let activations =
        ActivationPlan::load(&session.run, session.model.spec(), plan)?.with_dynamic(job.dynamic);
    let mut model = quantized_model(session, &session.run, plan, activations, variant)?;
    model.run(|tap| job.paint(session, &name, 0, tap))
}

pub(super) fn fingerprint(evaluator: Option<&Evaluator>) -> Result<Option<String>> {
    evaluator.map(|e| Ok(e.fingerprint()?.as_str().to_owned())).transpose()
}

/// The quantized model of a run.
pub(super) fn quantized_model(
    session: &Session,
    run: &RunFolder,
    plan: &QuantConfig,
    activations: ActivationPlan,
    variant: Variant,
) -> Result<QuantizedModel> {
    let spec = session.model.spec();
    let mut model = QuantizedModel::new(activations, session.model.dtype());
    let config = match variant {
        Variant::Quantized => Some(WeightsConfig::needed(run, "generate", spec)?),
        _ => WeightsConfig::of(run)?,
    };
    if let Some(config) = &config {
        visit_weight_only(run, spec, config, &mut |id, rounded| model.insert_weight_only(id, &rounded))?;
    }
    if let (Some(config), Variant::Quantized) = (&config, variant) {
        let steps = plan.sigma_map.len();
        visit_rounded(run, steps, config.blocks(spec), &mut |id, rounded| model.insert(id, &rounded))?;
        return Ok(model);
    }
    // The same grids as the rounder's, or plain ones of the plan's bits.
    for layer in spec.layers() {
        let grid = match &config {
            Some(config) => config.grid(&layer.id),
            None => Some(Grid::channel(plan.weight_bits[&layer.id])?),
        };
        // A block that `round` was told to leave alone stays in full precision here too.
        let Some(grid) = grid else { continue };
        model.insert_nearest(&*session.model, &layer.id, &grid)?;
    }
    Ok(model)
}

fn save(session: &Session, job: &Job, variant: Variant, generated: &Generated) -> Result<()> {
    for index in 0..generated.images.len() {
        let path = session.run.generated_image(variant, index);
        write_image(session, job, variant.name(), generated, index, &path)?;
    }
    let folder = session.run.generated().join(variant.name());
    write_npz(&folder.join("latents.npz"), |npz| npz.array("latents", &generated.latents))
}

/// One image with its settings beside the pixels.
pub(super) fn write_image(
    session: &Session,
    job: &Job,
    variant: &str,
    generated: &Generated,
    index: usize,
    path: &Path,
) -> Result<()> {
    let texts = job.texts(session, variant, index);
    let texts: Vec<(&str, &str)> = texts.iter().map(|(key, text)| (*key, text.as_str())).collect();
    generated.images[index].write_png(path, &texts)
}

fn write_report(
    session: &Session,
    settings: &GenerateSettings,
    job: &Job,
    variants: &[Variant],
    plan: Option<QuantConfig>,
    all: &[Generated],
) -> Result<()> {
    let run = &session.run;
    let weights = WeightsConfig::of(run)?;
    let sheet_path = run.generated().join("comparison.png");
    let layout = SheetLayout {
        columns: job.prompts.clone(),
        rows: variants.iter().map(|v| row_label(*v, weights.as_ref())).collect(),
        enlarge: 0,
    };
    let rows: Vec<Vec<Image>> = all.iter().map(|g| g.images.clone()).collect();
    image::sheet(&rows, &layout)?.write_png(&sheet_path, &[])?;
    let reference = &all[0];
    let full_precision = job.judge(reference)?;
    let variants = variants.iter().zip(all).skip(1).map(|(&variant, generated)| {
        compare(variant, &job.prompts, reference, generated, job.judge(generated)?.as_deref())
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
pub(super) fn row_label(variant: Variant, weights: Option<&WeightsConfig>) -> String {
    let rounder = weights.and_then(|w| w.rounder["name"].as_str());
    match variant {
        Variant::FullPrecision => "full precision".into(),
        Variant::Quantized => rounder.unwrap_or(variant.name()).to_owned(),
        Variant::Nearest => variant.name().to_owned(),
    }
}
