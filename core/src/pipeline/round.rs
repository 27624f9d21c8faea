//! `round`: the integers of the weights, block by block, each block seeing what the quantized blocks before it
//! put out.
//!
//! The unit of work is a block. Its `weights/{block}.npz` is written, then `weights/{block}.json`, which says that
//! it is done. A killed run computes the boundaries of finished blocks anew, which is cheap, and goes on.

use std::collections::BTreeMap;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::importance::Importance;
use super::quantized::{ActivationPlan, QuantizedLayers};
use super::reconstruction::{BlockReconstruction, Boundary};
use super::session::{measured, parts};
use super::{Outcome, SampleSet, Session};
use crate::artifacts::{
    Document, Npz, RunFolder, StageState, read_document, read_json, write_json, write_npz,
};
use crate::manifest::{Loss, RoundSettings};
use crate::noise::Rng;
use crate::plan::QuantConfig;
use crate::quant::{Clipping, Grid, GridParams, QuantizedLayer, round_nearest, to_matrix};
use crate::registry::Kind;
use crate::{
    BlockId, BlockJob, BlockSpec, Context, Error, LayerId, LayerJob, LearnedInput, ModelSpec, Result,
    RoundedBlock, RoundedLayer,
};

/// How one block came out: an entry of `quantized_weights/config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockMetrics {
    /// The block.
    pub block_name: BlockId,
    /// Exact ids of its quantized layers, with their grids; arrays carry the id with dots as underscores.
    pub layers: BTreeMap<LayerId, Grid>,
    /// Mean squared error of the block's outputs on held-out rows, every weight rounded to nearest on a grid of the same
    /// bits that is clipped where the weight's squared error is smallest, the inputs on the plan's grids.
    pub nearest_loss: f32,
    /// The same with what was chosen and learned.
    pub final_loss: f32,
    /// Training loss every 100 iterations.
    pub loss_history_stride100: Vec<f32>,
}

/// `quantized_weights/config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightsConfig {
    /// Always [`WeightsConfig::FORMAT`].
    pub format: String,
    /// Name of the model.
    pub model_version: String,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// The rounder with its settings and origin.
    pub rounder: serde_json::Value,
    /// Rows that were learned from.
    pub rows: usize,
    /// Rows that only judged.
    pub held_out_rows: usize,
    /// The blocks.
    pub block_metrics: Vec<BlockMetrics>,
}

impl Document for WeightsConfig {
    const FORMAT: &'static str = "taq.quantized_weights.v1";
    const KIND: &'static str = "quantized weights";
}

/// Runs the stage.
pub fn round(session: &Session, settings: &RoundSettings) -> Result<Outcome> {
    measured(session, "round", || {
        let run = &session.run;
        let spec = session.model.spec();
        let set = SampleSet::open(run, "round", &spec.fingerprint)?;
        let config = load_plan(run, "round", spec)?;
        let chosen = chosen_blocks(spec, settings)?;
        let rounder_identity = session.identity(Kind::Rounder, &settings.rounder)?;
        let rounder = session.registry.rounder(&settings.rounder.name, &settings.rounder.settings())?;
        let mut described = json!(settings);
        if let Some(described) = described.as_object_mut() {
            described.remove("rounder");
        }
        let parts = parts([
            ("samples", session.stage_identity("calibrate")?),
            ("plan", session.stage_identity("decide")?),
            ("rounder", rounder_identity.clone()),
            ("settings", described),
            ("images", json!(set.manifest.n_completed)),
            ("seed", json!(session.cx.seed)),
        ]);
        let state = run.begin_stage("round", &parts, &[run.quantized_weights()], session.force)?;
        let count = chosen.iter().filter(|c| **c).count();
        let summary = format!("{count} blocks by {}", settings.rounder.name);
        if state == StageState::Complete && run.weights_config().exists() {
            return Ok((summary, true));
        }
        let plan = ActivationPlan::load(run, spec, &config)?;
        let rows = Rows::choose(&set, settings, session.cx.seed)?;
        let mut full = rows.embed(session, &set)?;
        let importance = match settings.loss {
            Loss::Mse => None,
            Loss::Fisher => {
                let latent = set.manifest.latent_size;
                let seed = derived_seed(session.cx.seed, "importance");
                Some(Importance::measure(&*session.model, &plan, &full, rows.learn, latent, seed)?)
            }
        };
        let mut quantized = full.clone();
        let mut metrics = Vec::new();
        for (index, block) in spec.blocks.iter().enumerate() {
            session.cx.check()?;
            let targets = full.forward(&*session.model, index, None)?;
            let mut layers = QuantizedLayers::new();
            if chosen[index] {
                let jobs = layer_jobs(session, block, settings, &config, &plan)?;
                let reconstruction = BlockReconstruction {
                    model: &*session.model,
                    block: index,
                    plan: &plan,
                    layers: &jobs,
                    inputs: &quantized,
                    exact_inputs: &full,
                    targets: &targets,
                    learn: rows.learn,
                    importance: importance.as_ref().map(|blocks| &blocks[index]),
                };
                let job = BlockJob { block, layers: &jobs, reconstruction: &reconstruction };
                let at = format!("{} ({} of {})", block.id, metrics.len() + 1, count);
                metrics.push(round_block(session, settings, &*rounder, &job, &at)?);
                let done = metrics.last().map(|m: &BlockMetrics| (block, m));
                layers = load_blocks(run, &plan, done.into_iter())?;
            }
            quantized = quantized.forward(&*session.model, index, Some((&plan, &layers)))?;
            full = targets;
        }
        let document = WeightsConfig {
            format: WeightsConfig::FORMAT.to_owned(),
            model_version: spec.name.clone(),
            model_fingerprint: spec.fingerprint.clone(),
            rounder: rounder_identity,
            rows: rows.learn,
            held_out_rows: rows.all.len() - rows.learn,
            block_metrics: metrics,
        };
        write_json(&run.weights_config(), &document)?;
        run.finish_stage("round")?;
        Ok((summary, false))
    })
}

/// The plan of a run, checked against the model at hand.
pub(super) fn load_plan(run: &RunFolder, stage: &'static str, spec: &ModelSpec) -> Result<QuantConfig> {
    let path = run.quant_config();
    if !path.exists() {
        return Err(Error::StageMissing {
            stage,
            needs: "a quantization plan".into(),
            run: run.root().to_owned(),
            first: "decide",
        });
    }
    let config: QuantConfig = read_document(&path)?;
    if config.model != spec.fingerprint {
        return Err(Error::Stale { path, reason: "the plan is for another model".into() });
    }
    Ok(config)
}

fn chosen_blocks(spec: &ModelSpec, settings: &RoundSettings) -> Result<Vec<bool>> {
    let Some(blocks) = &settings.blocks else { return Ok(vec![true; spec.blocks.len()]) };
    let mut chosen = vec![false; spec.blocks.len()];
    for block in blocks {
        let Some(index) = spec.block_index(block) else {
            let known: Vec<&str> = spec.blocks.iter().map(|b| b.id.as_str()).collect();
            let reason = format!("the model has no block `{block}`; its blocks are {}", known.join(", "));
            return Err(Error::settings("round", reason));
        };
        chosen[index] = true;
    }
    Ok(chosen)
}

fn layer_jobs(
    session: &Session,
    block: &BlockSpec,
    settings: &RoundSettings,
    config: &QuantConfig,
    plan: &ActivationPlan,
) -> Result<Vec<LayerJob>> {
    let job = |spec: &crate::LayerSpec| {
        let planned = config.weight_bits.get(&spec.id).copied().ok_or_else(|| {
            let reason = format!("weight_bits has no layer {}", spec.id);
            Error::malformed("quantization plan", session.run.quant_config(), reason)
        })?;
        let grid = Grid::new(settings.bits_w.unwrap_or(planned), settings.granularity, settings.symmetric)?;
        grid.validate(spec)?;
        let input = plan.input(&spec.id)?.clone();
        Ok(LayerJob { spec: spec.clone(), weight: session.model.weight(&spec.id)?, grid, input })
    };
    block.layers.iter().map(job).collect()
}

/// Rounds a block, or takes it from the run folder if it is done; `name` is for people.
fn round_block(
    session: &Session,
    settings: &RoundSettings,
    rounder: &dyn crate::Rounder,
    job: &BlockJob<'_>,
    name: &str,
) -> Result<BlockMetrics> {
    let record = session.run.block_record(&job.block.id);
    let progress = &session.cx.progress;
    if record.exists() {
        progress.begin(&format!("round {name}, done before"), 1);
        progress.end();
        return read_json(&record, "block record");
    }
    progress.begin(&format!("round {name}"), rounder.iterations());
    let start = Instant::now();
    // Blocks must not share a random stream, and a resumed block must have the stream it would have had.
    let context = Context { seed: derived_seed(session.cx.seed, job.block.id.as_str()), ..session.cx.clone() };
    let rounded = rounder.round(job, &context)?;
    check(settings, job, &rounded)?;
    let learned = job.layers.iter().zip(&rounded.layers).map(|(job, layer)| layer.quantized(&job.input));
    let learned = learned.collect::<Result<Vec<_>>>()?;
    let metrics = BlockMetrics {
        block_name: job.block.id.clone(),
        layers: job.layers.iter().zip(&rounded.layers).map(|(l, r)| (l.spec.id.clone(), r.grid)).collect(),
        nearest_loss: job.reconstruction.held_out_loss(&nearest_layers(job)?)?,
        final_loss: job.reconstruction.held_out_loss(&learned)?,
        loss_history_stride100: rounded.losses.clone(),
    };
    tracing::info!(
        "{}: held-out error {:.3e}, nearest {:.3e}, {:.1} s",
        job.block.id,
        metrics.final_loss,
        metrics.nearest_loss,
        start.elapsed().as_secs_f64()
    );
    write_block(&session.run, job, &rounded)?;
    write_json(&record, &metrics)?;
    progress.end();
    Ok(metrics)
}

/// What learning is compared with: every weight rounded to nearest, clipped where its squared error is smallest; inputs
/// as planned.
fn nearest_layers(job: &BlockJob<'_>) -> Result<Vec<QuantizedLayer>> {
    let layer = |layer: &LayerJob| {
        let (values, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
        let params = GridParams::fit(&values, shape, &layer.grid, Clipping::Mse)?;
        round_nearest(&values, shape, &layer.grid, params)?.quantized(&layer.input)
    };
    job.layers.iter().map(layer).collect()
}

fn derived_seed(seed: u64, label: &str) -> u64 {
    let hash = blake3::hash(format!("{seed} {label}").as_bytes());
    hash.as_bytes()[..8].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn check(settings: &RoundSettings, job: &BlockJob<'_>, rounded: &RoundedBlock) -> Result<()> {
    let owner = || format!("rounder `{}`", settings.rounder.name);
    if rounded.layers.len() != job.layers.len() {
        let reason = format!("it returned {} layers for {}", rounded.layers.len(), job.layers.len());
        return Err(Error::settings(owner(), reason));
    }
    for (layer, rounded) in job.layers.iter().zip(&rounded.layers) {
        rounded.validate(&layer.spec, layer.input.steps()).map_err(|e| Error::settings(owner(), e))?;
    }
    Ok(())
}

fn write_block(run: &RunFolder, job: &BlockJob<'_>, rounded: &RoundedBlock) -> Result<()> {
    write_npz(&run.block_weights(&job.block.id), |npz| {
        for (layer, rounded) in job.layers.iter().zip(&rounded.layers) {
            let layout = rounded.grid.layout(rounded.shape)?;
            let name = |field: &str| format!("{}__{field}", layer.spec.id.array_prefix());
            let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
            npz.add(&name("weight_int"), &rounded.shape, &rounded.weight_int)?;
            npz.add(&name("scale"), &groups, &rounded.scale)?;
            if !rounded.grid.symmetric {
                npz.add(&name("zero_point"), &groups, &rounded.zero_point)?;
            }
            let Some(learned) = &rounded.learned else { continue };
            let ([outputs, inputs], steps) = (rounded.shape, learned.scale.len());
            npz.add(&name("a_scale"), &[steps], &learned.scale)?;
            for (field, values, shape) in [
                ("a_shift", &learned.shift, vec![steps, inputs]),
                ("multiplier", &learned.multiplier, vec![inputs]),
                ("bias", &learned.bias, vec![steps, outputs]),
            ] {
                if !values.is_empty() {
                    npz.add(&name(field), &shape, values)?;
                }
            }
        }
        Ok(())
    })
}

/// The layers of finished blocks.
pub(super) fn load_blocks<'a>(
    run: &RunFolder,
    plan: &ActivationPlan,
    blocks: impl Iterator<Item = (&'a BlockSpec, &'a BlockMetrics)>,
) -> Result<QuantizedLayers> {
    let mut layers = QuantizedLayers::new();
    for (block, metrics) in blocks {
        let path = run.block_weights(&block.id);
        let npz = Npz::open(&path)?;
        for layer in &block.layers {
            let Some(&grid) = metrics.layers.get(&layer.id) else { continue };
            let name = |field: &str| format!("{}__{field}", layer.id.array_prefix());
            let shape = [layer.out_features, layer.in_features];
            let layout = grid.layout(shape)?;
            let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
            let steps = plan.timesteps.len();
            let optional = |field: &str, shape: &[usize]| match npz.contains(&name(field)) {
                true => npz.vec(&name(field), shape),
                false => Ok(Vec::new()),
            };
            let learned = match npz.contains(&name("a_scale")) {
                true => Some(LearnedInput {
                    scale: npz.vec(&name("a_scale"), &[steps])?,
                    shift: optional("a_shift", &[steps, layer.in_features])?,
                    multiplier: optional("multiplier", &[layer.in_features])?,
                    bias: optional("bias", &[steps, layer.out_features])?,
                }),
                false => None,
            };
            let rounded = RoundedLayer {
                grid,
                shape,
                weight_int: npz.vec(&name("weight_int"), &shape)?,
                scale: npz.vec(&name("scale"), &groups)?,
                zero_point: if grid.symmetric {
                    vec![0; layout.groups]
                } else {
                    npz.vec(&name("zero_point"), &groups)?
                },
                learned,
            };
            rounded.validate(layer, steps).map_err(|e| Error::malformed("block of weights", &path, e))?;
            layers.insert(layer.id.clone(), rounded.quantized(plan.input(&layer.id)?)?);
        }
    }
    Ok(layers)
}

/// The calibration rows: learned ones first.
struct Rows {
    /// (image, step, whether it is the prompt's row and not the unconditional one).
    all: Vec<(usize, usize, bool)>,
    learn: usize,
}

impl Rows {
    fn choose(set: &SampleSet, settings: &RoundSettings, seed: u64) -> Result<Self> {
        for (name, n) in [("rows", settings.rows), ("held_out_rows", settings.held_out_rows)] {
            if n == 0 {
                return Err(Error::settings("round", format!("{name} must be at least 1, not 0")));
            }
        }
        let images = set.manifest.n_completed;
        // With a single image there is nothing to hold out but other steps of it.
        let held_images = if images > 1 { images.div_ceil(8) } else { 0 };
        let branches: &[bool] = if set.manifest.cfg_scale > 0.0 { &[true, false] } else { &[true] };
        let pairs = |images: std::ops::Range<usize>| -> Vec<(usize, usize, bool)> {
            let steps = &set.manifest.kept_steps;
            images
                .flat_map(|i| steps.iter().flat_map(move |&s| branches.iter().map(move |&b| (i, s, b))))
                .collect()
        };
        let mut rng = Rng::stream(seed, "rows");
        let mut learn = pairs(0..images - held_images);
        rng.shuffle(&mut learn);
        let mut held = if held_images > 0 {
            let mut held = pairs(images - held_images..images);
            rng.shuffle(&mut held);
            held
        } else {
            let n = settings.held_out_rows.min(learn.len() / 4).max(1).min(learn.len());
            learn.split_off(learn.len() - n)
        };
        if learn.is_empty() {
            return Err(Error::settings("round", "there are too few calibration samples to learn from"));
        }
        learn.truncate(settings.rows);
        held.truncate(settings.held_out_rows);
        let count = learn.len();
        learn.extend(held);
        Ok(Self { all: learn, learn: count })
    }

    /// What the first block sees of these rows.
    fn embed(&self, session: &Session, set: &SampleSet) -> Result<Boundary> {
        let encoded = session.encode(&set.prompts())?;
        let mut parts = Vec::new();
        for rows in self.all.chunks(64) {
            let pairs: Vec<_> = rows.iter().map(|&(image, step, _)| (image, step)).collect();
            let x = set.latents(&pairs)?;
            let timesteps: Vec<f32> = rows.iter().map(|&(_, step, _)| set.timestep(step)).collect();
            let conditioning = encoded
                .rows(&rows.iter().map(|&(image, _, prompt)| prompt.then_some(image)).collect::<Vec<_>>())?;
            let io = session.model.embed(&x, &timesteps, &conditioning)?;
            mlx_rs::transforms::eval([&io.hidden, &io.temb].into_iter().chain(&io.context))?;
            parts.push(io);
        }
        Boundary::concat(&parts)
    }
}
