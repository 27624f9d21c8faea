//! `import`: integers that an export kept, back in a run folder.
//!
//! The folder then holds what `decide` and `round` would have left: a plan and rounded weights, of the model at hand. A packed
//! folder brings its own plan and gives back the run that it was made of. MLX's and ggml's files have no grids of inputs, so the
//! plan is that of the run folder or of another run; their step sizes are those that the file holds, rounded to 16 bits when it
//! was written. Exporting what was imported gives the same bytes.
//!
//! Only exports of the model at hand are read: every tensor that holds no integers must be the model's own.

mod gguf;
mod grids;
mod mlx;
mod packed;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::export::packed as layout;
use super::quantized::ActivationPlan;
use super::round::{BlockMetrics, WeightsConfig, load_plan, write_layers};
use super::session::{measured, parts};
use super::{Outcome, Session};
use crate::artifacts::{
    Document, Fingerprint, Npz, RunFolder, StageState, file_hash, read_document, write_json, write_npz,
};
use crate::plan::QuantConfig;
use crate::quant::to_vec;
use crate::{Error, LayerId, ModelSpec, Result, RoundedLayer};

/// Settings of [`import`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportSettings {
    /// What `export` wrote: its folder, or a GGUF file.
    pub from: PathBuf,
    /// A run folder whose plan is taken, for formats without one; default: the plan that is in the run folder.
    pub plan: Option<PathBuf>,
}

/// What an export holds.
struct Imported {
    /// In the order of the forward pass.
    layers: Vec<(LayerId, RoundedLayer)>,
    /// What packed folders have beside.
    origin: Option<Origin>,
}

/// The run that a packed folder was made of.
struct Origin {
    planned: Planned,
    rounding: WeightsConfig,
}

/// A plan with the shifts that it refers to, `[steps, in_features]` by layer.
struct Planned {
    plan: QuantConfig,
    shifts: BTreeMap<LayerId, Vec<f32>>,
}

/// Reads an export into the run folder.
///
/// # Errors
/// [`Error::Settings`] if it is no export with integers, is of another model, or there is no plan; [`Error::Unsupported`] names
/// the layer whose integers it does not hold; [`Error::Malformed`] for files that are not what they should be; [`Error::Stale`] if
/// the run folder holds another plan or other weights.
pub fn import(session: &Session, settings: &ImportSettings) -> Result<Outcome> {
    measured(session, "import", || {
        let source = Source::find(&settings.from)?;
        let hash = source.hash()?;
        let imported = match &source {
            Source::Packed(folder) => packed::read(session, folder)?,
            Source::Mlx(folder) => mlx::read(session, folder)?,
            Source::Gguf(file) => gguf::read(session, file)?,
        };
        let (run, spec) = (&session.run, session.model.spec());
        let (planned, rounding) = match imported.origin {
            Some(origin) if settings.plan.is_none() => (Some(origin.planned), Some(origin.rounding)),
            Some(_) => return Err(refusal("the folder holds the plan of its run; leave --plan away")),
            None => (settings.plan.as_deref().map(|run| plan_of(run, spec)).transpose()?, None),
        };
        match planned {
            Some(planned) => keep_plan(session, &planned)?,
            None if run.quant_config().exists() => {}
            None => {
                return Err(refusal(format!(
                    "{} holds no grids of inputs, and the run folder no plan; name a run of this model with --plan, or import \
                     into one that has come to `taq decide`",
                    source.name()
                )));
            }
        }
        let plan = load_plan(run, "import", spec)?;
        let steps = ActivationPlan::load(run, spec, &plan)?.timesteps.len();
        let shapes: BTreeMap<_, _> = spec.weights().collect();
        for (id, layer) in &imported.layers {
            let shape = shapes.get(id).ok_or_else(|| refusal(format!("the model has no layer {id}")))?;
            layer.check(id, *shape, steps).map_err(|e| Error::malformed("export", &settings.from, e))?;
        }
        let parts = parts([
            ("imported", json!({ "format": source.name(), "hash": hash })),
            ("plan", session.stage_identity("decide")?),
        ]);
        let state = run.begin_stage("round", &parts, &[run.quantized_weights()], session.force)?;
        let summary = format!("{} layers of {}", imported.layers.len(), source.name());
        if state == StageState::Complete && run.weights_config().exists() {
            return Ok((summary, true));
        }
        let document = rounding.unwrap_or_else(|| described(spec, &source, &imported.layers));
        write(run, spec, &imported.layers, &document)?;
        run.finish_stage("round")?;
        Ok((summary, false))
    })
}

/// Where an export lies.
enum Source {
    /// The transformer's folder of a packed folder.
    Packed(PathBuf),
    /// The folder.
    Mlx(PathBuf),
    /// The file.
    Gguf(PathBuf),
}

impl Source {
    fn find(path: &Path) -> Result<Self> {
        if path.is_file() {
            return match path.extension() {
                Some(e) if e.eq_ignore_ascii_case("gguf") => Ok(Self::Gguf(path.to_owned())),
                _ => Err(refusal(format!("`{}` is no GGUF file; other exports are folders", path.display()))),
            };
        }
        let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
        let mut folders = vec![path.to_owned()];
        for entry in entries {
            folders.push(entry.map_err(Error::io("read", path))?.path());
        }
        folders.sort();
        if let Some(packed) = folders.into_iter().find(|f| f.join(layout::WEIGHTS).is_file()) {
            return Ok(Self::Packed(packed));
        }
        if path.join("model.gguf").is_file() {
            return Ok(Self::Gguf(path.join("model.gguf")));
        }
        if path.join(mlx::WEIGHTS).is_file() && path.join(mlx::CONFIG).is_file() {
            return Ok(Self::Mlx(path.to_owned()));
        }
        Err(refusal(format!(
            "`{}` holds no integers: it is none of the folders that `taq export` writes with --format packed, mlx or gguf \
             (diffusers and single-file hold dequantized weights)",
            path.display()
        )))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Packed(_) => "packed",
            Self::Mlx(_) => "mlx",
            Self::Gguf(_) => "gguf",
        }
    }

    /// Of all that is read.
    fn hash(&self) -> Result<String> {
        let files: Vec<PathBuf> = match self {
            Self::Packed(folder) => {
                [layout::CONFIG, layout::WEIGHTS, layout::INPUTS, layout::PLAN, layout::ROUNDING]
                    .map(|name| folder.join(name))
                    .into()
            }
            Self::Mlx(folder) => [mlx::CONFIG, mlx::WEIGHTS].map(|name| folder.join(name)).into(),
            Self::Gguf(file) => vec![file.clone()],
        };
        let hashes = files.iter().map(|f| Ok(json!(file_hash(f)?))).collect::<Result<Vec<_>>>()?;
        Ok(Fingerprint::of(&parts([("files", json!(hashes))])).as_str().to_owned())
    }
}

fn refusal(reason: impl std::fmt::Display) -> Error {
    Error::settings("import", reason)
}

/// The plan of another run.
fn plan_of(root: &Path, spec: &ModelSpec) -> Result<Planned> {
    let run = RunFolder::open(root)?;
    let plan = load_plan(&run, "import", spec)?;
    let mut shifts = BTreeMap::new();
    for (id, input) in ActivationPlan::load(&run, spec, &plan)?.inputs {
        if let Some(shift) = &input.shift {
            shifts.insert(id, to_vec(shift)?);
        }
    }
    Ok(Planned { plan, shifts })
}

/// Puts a plan into the run folder, unless it is there already.
fn keep_plan(session: &Session, planned: &Planned) -> Result<()> {
    let (run, spec, plan) = (&session.run, session.model.spec(), &planned.plan);
    if plan.model != spec.fingerprint {
        return Err(refusal(format!("the plan is for another model than `{}`", spec.name)));
    }
    if run.quant_config().exists() && read_document::<QuantConfig>(&run.quant_config())? == *plan {
        return Ok(());
    }
    let hash = Fingerprint::of(&parts([("plan", json!(plan))]));
    let outputs = [run.quant_config(), run.temporal_analysis()];
    run.begin_stage("decide", &parts([("imported", json!(hash.as_str()))]), &outputs, session.force)?;
    for (at, (&step, grids)) in plan.per_timestep.iter().enumerate() {
        let mut vectors = Vec::new();
        for layer in spec.layers().filter(|l| grids.get(&l.id).is_some_and(|g| g.shift)) {
            let from = at * layer.in_features;
            let shift = planned.shifts.get(&layer.id).and_then(|all| all.get(from..from + layer.in_features));
            let shift =
                shift.ok_or_else(|| refusal(format!("the plan's shift of {} is not there", layer.id)))?;
            vectors.push((format!("{}__shift", layer.id.array_prefix()), shift));
        }
        let path = run.step_stats(step);
        if path.exists() {
            let npz = Npz::open(&path)?;
            for (name, shift) in &vectors {
                if !npz.contains(name) || npz.vec::<f32>(name, &[shift.len()])? != **shift {
                    return Err(refusal(format!(
                        "`{}` has statistics of its own, without the shifts of the plan; import into a new run folder",
                        run.root().display()
                    )));
                }
            }
        } else if !vectors.is_empty() {
            write_npz(&path, |npz| vectors.iter().try_for_each(|(name, v)| npz.add(name, &[v.len()], v)))?;
        }
    }
    write_json(&run.quant_config(), plan)?;
    run.finish_stage("decide")
}

/// `quantized_weights/config.json` of a format that has none. Nothing was learned here and nothing measured.
fn described(spec: &ModelSpec, source: &Source, layers: &[(LayerId, RoundedLayer)]) -> WeightsConfig {
    let of_block = |block: &crate::BlockSpec| {
        let here = |id: &LayerId| block.layers.iter().any(|l| l.id == *id);
        let layers: BTreeMap<_, _> =
            layers.iter().filter(|(id, _)| here(id)).map(|(id, l)| (id.clone(), l.grid)).collect();
        (!layers.is_empty()).then(|| BlockMetrics {
            block_name: block.id.clone(),
            layers,
            nearest_loss: None,
            final_loss: None,
            loss_history_stride100: Vec::new(),
        })
    };
    let weight_only = |(id, l): &(LayerId, RoundedLayer)| {
        spec.weight_only.iter().any(|s| s.id == *id).then(|| (id.clone(), l.grid))
    };
    WeightsConfig {
        format: WeightsConfig::FORMAT.to_owned(),
        model_version: spec.name.clone(),
        model_fingerprint: spec.fingerprint.clone(),
        rounder: json!({ "name": "import", "settings": { "format": source.name() } }),
        bits_a: None,
        rows: 0,
        held_out_rows: 0,
        block_metrics: spec.blocks.iter().filter_map(of_block).collect(),
        weight_only: layers.iter().filter_map(weight_only).collect(),
        end_to_end: None,
        costs: BTreeMap::new(),
    }
}

/// Writes what `round` leaves.
fn write(
    run: &RunFolder,
    spec: &ModelSpec,
    layers: &[(LayerId, RoundedLayer)],
    document: &WeightsConfig,
) -> Result<()> {
    for metrics in &document.block_metrics {
        let mut of_block = Vec::new();
        let index = spec.block_index(&metrics.block_name);
        for layer in index.into_iter().flat_map(|i| &spec.blocks[i].layers) {
            let found = layers.iter().find(|(id, _)| *id == layer.id);
            match (metrics.layers.get(&layer.id), found) {
                (None, None) => {}
                (Some(grid), Some((id, rounded))) if rounded.grid == *grid => of_block.push((id, rounded)),
                _ => {
                    let reason = format!("it and the packed weights disagree about layer {}", layer.id);
                    return Err(refusal(format!("{}: {reason}", layout::ROUNDING)));
                }
            }
        }
        write_layers(&run.block_weights(&metrics.block_name), of_block)?;
        write_json(&run.block_record(&metrics.block_name), metrics)?;
    }
    if !document.weight_only.is_empty() {
        let weight_only = layers.iter().filter(|(id, _)| document.weight_only.contains_key(id));
        write_layers(&run.weight_only_weights(), weight_only.map(|(id, rounded)| (id, rounded)))?;
    }
    write_json(&run.weights_config(), document)
}
