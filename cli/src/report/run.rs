//! One run as the page shows it.

use std::path::{Path, PathBuf};

use taq_core::Result;
use taq_core::artifacts::{RunFolder, read_document};
use taq_core::pipeline::{Report, RunManifest, Sensitivities};

use super::STAGE;
use super::blocks::Rounding;
use super::data::RunData;
use super::freshness;
use super::images::Images;
use super::inputs::Inputs;
use super::layers::{self, Axes, LayerRow};
use super::plan::PlanView;
use super::sensitivities::SensitivityView;
use super::settings::StageSettings;
use super::stages::Costs;
use crate::results::rounding::rounder;
use crate::results::scores::Scores;
use crate::results::sources::Sources;

/// What the report could have shown, and how to come by it.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) what: &'static str,
    /// The stage to run.
    pub(crate) stage: &'static str,
    /// The folder as it was named.
    pub(crate) run: PathBuf,
}

/// One line of what the run is.
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: String,
}

/// A run's sections. Those of stages that are not done are absent.
pub(super) struct RunView {
    /// Beginning of the ids of the run's elements.
    pub(super) id: String,
    /// The folder's name.
    pub(super) name: String,
    pub(super) facts: Vec<Fact>,
    pub(super) missing: Vec<Missing>,
    /// Results that were made from others than those now in the folder.
    pub(super) outdated: Vec<String>,
    pub(super) scores: Option<Scores>,
    pub(super) images: Option<Images>,
    pub(super) plan: Option<PlanView>,
    /// Has statistics, hence maps.
    pub(super) observed: Option<String>,
    pub(super) layers: Vec<LayerRow>,
    pub(super) rounding: Option<Rounding>,
    pub(super) sensitivities: Option<SensitivityView>,
    pub(super) costs: Option<Costs>,
    pub(super) settings: Vec<StageSettings>,
    /// What the script draws.
    pub(super) data: RunData,
}

impl RunView {
    /// Reads what there is; `None` if there is nothing.
    pub(super) fn read(run: RunFolder, index: usize, images: Option<usize>) -> Result<Option<Self>> {
        let manifest: Option<RunManifest> = document(&run.manifest())?;
        let report: Option<Report> = document(&run.report_json())?;
        let measured: Option<Sensitivities> = document(&run.sensitivities())?;
        let sources = Sources::open(run.clone(), STAGE, None)?;
        let settings = StageSettings::read(&run)?;
        let (statistics, plan) = (sources.statistics().ok(), sources.plan().ok());
        let weights = sources.weights().ok();
        let nothing = manifest.is_none() && report.is_none() && statistics.is_none();
        if nothing && plan.is_none() && weights.is_none() && settings.is_empty() {
            return Ok(None);
        }
        let missing = [
            (manifest.is_none(), "calibration", "calibrate"),
            (statistics.is_none(), "statistics and maps of activations", "observe"),
            (measured.is_none(), "sensitivities", "sensitivity"),
            (plan.is_none(), "the plan", "decide"),
            (weights.is_none(), "rounded weights", "round"),
            (report.is_none(), "images and scores", "generate"),
        ];
        let missing = missing.into_iter().filter(|(absent, _, _)| *absent);
        let missing = missing.map(|(_, what, stage)| Missing { what, stage, run: run.root().to_owned() });

        let axes = Axes::of(&sources);
        let inputs = statistics.map(|s| Inputs::read(s, &axes)).transpose()?;
        let layers = layers::rows(&sources, &axes, inputs.as_ref());
        let data = RunData::read(&sources, axes, inputs, measured.as_ref())?;
        let mut facts = Vec::new();
        let mut fact = |name, value: String| facts.push(Fact { name, value });
        if let Some(name) = report.as_ref().map(|r| &r.model).or(manifest.as_ref().map(|m| &m.model_version))
        {
            fact("Model", name.clone());
        }
        if let Some(plan) = plan {
            fact("Plan", format!("{}, by {}", widths(&plan.summary), plan.policy));
        }
        if let Some(weights) = weights {
            fact("Rounding", rounder(&weights.rounder));
        }
        if let Some(m) = &manifest {
            let done =
                if m.n_completed < m.num_images { format!(" of {}", m.num_images) } else { String::new() };
            fact("Calibration", format!("{}{done} images × {} steps", m.n_completed, m.num_steps));
            fact("Guidance", format!("{}", m.cfg_scale));
        }
        Ok(Some(Self {
            id: format!("run{index}"),
            name: name(run.root()),
            facts,
            missing: missing.collect(),
            outdated: freshness::outdated(&run)?,
            scores: report.as_ref().and_then(Scores::of),
            images: report.as_ref().map(|r| Images::read(&run, r, images)).transpose()?.flatten(),
            plan: plan.map(|p| PlanView::of(p, statistics)),
            observed: statistics.map(|s| {
                let m = &s.index.metadata;
                format!(
                    "{} images × {} timesteps, observer {}",
                    m.num_images, m.num_timesteps, m.observer.name
                )
            }),
            layers,
            rounding: weights.map(Rounding::of),
            sensitivities: measured.as_ref().and_then(SensitivityView::of),
            costs: Costs::read(&run)?,
            settings,
            data,
        }))
    }
}

/// `W4 A8`, `W4 A6.52` on average.
pub(super) fn widths(summary: &taq_core::plan::PlanSummary) -> String {
    let bits = |b: f64| if b.fract() == 0.0 { format!("{b:.0}") } else { format!("{b:.2}") };
    format!("W{} A{}", bits(summary.average_weight_bits), bits(summary.average_activation_bits))
}

/// The folder's own name: where it lies on this machine is nobody's business.
fn name(root: &Path) -> String {
    let full = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    full.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

fn document<T: taq_core::artifacts::Document>(path: &Path) -> Result<Option<T>> {
    if path.exists() { read_document(path).map(Some) } else { Ok(None) }
}
