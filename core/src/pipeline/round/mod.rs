//! `round`: the integers of the weights, block by block, each block seeing what the quantized blocks before it
//! put out.
//!
//! The unit of work is a block. Its `weights/{block}.npz` is written, then `weights/{block}.json`, which says that
//! it is done. A killed run computes the boundaries of finished blocks anew, which is cheap, and goes on.

mod end_to_end;
mod finite;
mod rows;
mod weight_only;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use mlx_rs::memory;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cache::chosen;
use super::importance::Importance;
use super::meter::Meter;
use super::quantized::{ActivationPlan, QuantizedLayers};
use super::reconstruction::{BlockReconstruction, Guided};
use super::session::{measured, parts};
use super::{Outcome, SampleSet, Session};
use crate::artifacts::{Document, RunFolder, StageState, file_hash, read_document, read_json, write_json};
use crate::manifest::RoundSettings;
use crate::plan::QuantConfig;
use crate::quant::{Clipping, Grid, QuantizedLayer, nearest};
use crate::registry::Kind;
use crate::{
    BlockId, BlockJob, BlockSpec, Context, Error, LayerId, LayerJob, ModelSpec, Result, RoundedLayer,
};
use end_to_end::{AllBlocks, end_to_end};
use finite::Passed;
use rows::Rows;
use weight_only::round_weight_only;
pub(super) use weight_only::visit_weight_only;
pub(super) use weights::{load_blocks, load_rounded, visit_rounded, write_layers};

/// How one block came out: an entry of `quantized_weights/config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockMetrics {
    /// The block.
    pub block_name: BlockId,
    /// Exact ids of its quantized layers, with their grids; arrays carry the id with dots as underscores.
    pub layers: BTreeMap<LayerId, Grid>,
    /// Mean squared error of the block's outputs on held-out rows, every weight rounded to nearest on a grid of the same
    /// bits that is clipped where the weight's squared error is smallest, the inputs on the plan's grids. Absent of imported
    /// weights, that nobody judged here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nearest_loss: Option<f32>,
    /// The same with what was chosen and learned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub final_loss: Option<f32>,
    /// Training loss every 100 iterations.
    pub loss_history_stride100: Vec<f32>,
}

/// How looking at all blocks together came out: mean squared errors of the last block's output on held-out rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndToEndMetrics {
    /// Of the blocks as they were rounded one by one.
    pub before_loss: f32,
    /// Of what is kept.
    pub final_loss: f32,
    /// Training loss every 100 iterations.
    pub loss_history_stride100: Vec<f32>,
    /// What it took.
    pub cost: BlockCost,
}

/// What rounding one block took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockCost {
    /// Wall time of learning, judging included.
    pub seconds: f64,
    /// Peak resident memory of the process meanwhile.
    pub peak_memory_bytes: usize,
    /// Peak of MLX's arrays meanwhile; on a GPU, of its memory.
    pub peak_array_bytes: usize,
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
    /// Bits of every input, where `round` was told to replace the plan's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bits_a: Option<u8>,
    /// Rows that were learned from.
    pub rows: usize,
    /// Rows that only judged.
    pub held_out_rows: usize,
    /// The blocks.
    pub block_metrics: Vec<BlockMetrics>,
    /// Grids of layers whose input is not quantized; empty where they are left in full precision.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub weight_only: BTreeMap<LayerId, Grid>,
    /// How looking at all blocks together came out, where the rounder did so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end_to_end: Option<EndToEndMetrics>,
    /// What each block took; all that differs between two runs of the same settings.
    pub costs: BTreeMap<BlockId, BlockCost>,
}

impl Document for WeightsConfig {
    const FORMAT: &'static str = "taq.quantized_weights.v1";
    const KIND: &'static str = "quantized weights";
}

impl WeightsConfig {
    /// What `round` left in a run; `None` before it has.
    ///
    /// # Errors
    /// As [`read_document`].
    pub fn of(run: &RunFolder) -> Result<Option<Self>> {
        let path = run.weights_config();
        path.exists().then(|| read_document(&path)).transpose()
    }

    /// What `round` left in a run, for a stage that cannot do without.
    ///
    /// # Errors
    /// [`Error::StageMissing`] before `round`, [`Error::Stale`] if it is of another model.
    pub(super) fn needed(run: &RunFolder, stage: &'static str, spec: &ModelSpec) -> Result<Self> {
        let Some(config) = Self::of(run)? else {
            return Err(Error::StageMissing {
                stage,
                needs: "rounded weights".into(),
                run: run.root().to_owned(),
                first: "round",
            });
        };
        if config.model_fingerprint != spec.fingerprint {
            let reason = "the weights are of another model".into();
            return Err(Error::Stale { path: run.weights_config(), reason });
        }
        Ok(config)
    }

    /// The grid of a layer's weight; `None` if it was left alone.
    pub fn grid(&self, layer: &LayerId) -> Option<Grid> {
        let blocks = || self.block_metrics.iter().find_map(|m| m.layers.get(layer));
        self.weight_only.get(layer).or_else(blocks).copied()
    }

    /// The rounded blocks of the model, in the order of the forward pass.
    pub(super) fn blocks<'a>(
        &'a self,
        spec: &'a ModelSpec,
    ) -> impl Iterator<Item = (&'a BlockSpec, &'a BlockMetrics)> {
        let block = |m: &'a BlockMetrics| Some((&spec.blocks[spec.block_index(&m.block_name)?], m));
        self.block_metrics.iter().filter_map(block)
    }
}

/// Runs the stage.
pub fn round(session: &Session, settings: &RoundSettings) -> Result<Outcome> {
    measured(session, "round", || {
        let run = &session.run;
        let spec = session.model.spec();
        let set = SampleSet::open(run, "round", &*session.model)?;
        let mut config = load_plan(run, "round", spec)?;
        if let Some(bits) = settings.bits_a {
            config = config.with_activation_bits(bits)?;
        }
        let chosen = chosen_blocks(spec, settings)?;
        let rounder_identity = session.identity(Kind::Rounder, &settings.rounder)?;
        let rounder = session.registry.rounder(&settings.rounder.name, &settings.rounder.settings())?;
        let mut described = json!(settings);
        if let Some(described) = described.as_object_mut() {
            described.remove("rounder");
            described.remove("cache");
            described.remove("memory_gb");
        }
        let parts = parts([
            ("samples", set.identity(session)?),
            ("plan", session.stage_identity("decide")?),
            ("rounder", rounder_identity.clone()),
            ("settings", described),
            ("images", json!(set.manifest.n_completed)),
            ("cache", json!(settings.cache.as_deref().map(cache_hash).transpose()?)),
            ("seed", json!(session.cx.seed)),
        ]);
        let state = run.begin_stage("round", &parts, &[run.quantized_weights()], session.force)?;
        let count = chosen.iter().filter(|c| **c).count();
        let summary = format!("{count} blocks by {}", settings.rounder.name);
        if state == StageState::Complete && run.weights_config().exists() {
            return Ok((summary, true));
        }
        let plan = ActivationPlan::load(run, spec, &config)?;
        let rows = Rows::choose(&set, settings, spec, session.cx.seed, run.root())?;
        let (first, mut full) = rows.first(session, &set, &chosen)?;
        let importance = match settings.loss.weighted() {
            true if first > 0 => {
                let reason =
                    "a weighted loss needs a cache that begins with the first block; use loss = \"guided\"";
                return Err(Error::settings("round", reason));
            }
            true => {
                let (latent, seed) = (set.manifest.latent_size, derived_seed(session.cx.seed, "importance"));
                let learn = rows.learn * rows.branches;
                Some(Importance::measure(&*session.model, &plan, &full, learn, latent, seed)?)
            }
            false => None,
        };
        let guidance = (rows.branches > 1)
            .then_some(Guided { weight: set.manifest.cfg_scale, together: settings.loss.guided() });
        let (embedded, mut quantized) = (full.clone(), full.clone());
        let mut metrics = Vec::new();
        for (index, block) in spec.blocks.iter().enumerate().skip(first) {
            session.cx.check()?;
            let exact =
                Passed { model: &*session.model, block: index, inputs: &full, plan: &plan, layers: None };
            if index == first {
                exact.check(&full)?;
            }
            let targets = rows.targets(session, index, &full)?;
            exact.check(&targets)?;
            let mut layers = QuantizedLayers::new();
            if chosen[index] {
                let jobs = layer_jobs(session, block, settings, &config, &plan)?;
                let reconstruction = BlockReconstruction {
                    model: &*session.model,
                    blocks: index..index + 1,
                    plan: &plan,
                    layers: &jobs,
                    inputs: &quantized,
                    exact_inputs: &full,
                    targets: &targets,
                    learn: rows.learn * rows.branches,
                    guidance,
                    importance: importance.as_ref().map(|blocks| &blocks[index]),
                };
                let job = BlockJob { block, layers: &jobs, reconstruction: &reconstruction };
                let at = format!("{} ({} of {})", block.id, metrics.len() + 1, count);
                metrics.push(round_block(session, settings, &plan, &*rounder, &job, &at)?);
                let done = metrics.last().map(|m: &BlockMetrics| (block, m));
                layers = load_blocks(run, &plan, done.into_iter())?;
            }
            let after = rows.quantized(session, index, &quantized, (&plan, &layers))?;
            Passed { inputs: &quantized, layers: Some(&layers), ..exact }.check(&after)?;
            quantized = after;
            full = targets;
        }
        let all = AllBlocks {
            blocks: first..spec.blocks.len(),
            config: &config,
            plan: &plan,
            inputs: &embedded,
            targets: &full,
            learn: rows.learn * rows.branches,
            guidance,
            metrics: &metrics,
        };
        let tuned = end_to_end(session, settings, &*rounder, &all)?;
        let weight_only =
            settings.weight_only_bits.map(|bits| round_weight_only(session, bits)).transpose()?;
        let document = WeightsConfig {
            format: WeightsConfig::FORMAT.to_owned(),
            model_version: spec.name.clone(),
            model_fingerprint: spec.fingerprint.clone(),
            rounder: rounder_identity,
            bits_a: settings.bits_a,
            rows: rows.learn,
            held_out_rows: rows.count - rows.learn,
            weight_only: weight_only.unwrap_or_default(),
            end_to_end: tuned,
            costs: metrics.iter().map(|m| cost(run, &m.block_name)).collect::<Result<_>>()?,
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

/// The plan that a run's quantized model follows: its own, with the bits of inputs that `round` put in the place of its.
pub(super) fn effective_plan(run: &RunFolder, stage: &'static str, spec: &ModelSpec) -> Result<QuantConfig> {
    let plan = load_plan(run, stage, spec)?;
    match WeightsConfig::of(run)?.and_then(|weights| weights.bits_a) {
        Some(bits) => plan.with_activation_bits(bits),
        None => Ok(plan),
    }
}

fn cost(run: &RunFolder, block: &BlockId) -> Result<(BlockId, BlockCost)> {
    Ok((block.clone(), read_json(&run.block_cost(block), "cost of a block")?))
}

/// What a cache holds is part of what the weights depend on; where it lies is not.
fn cache_hash(folder: &Path) -> Result<String> {
    file_hash(&folder.join("metadata.json"))
}

fn chosen_blocks(spec: &ModelSpec, settings: &RoundSettings) -> Result<Vec<bool>> {
    let Some(blocks) = &settings.blocks else { return Ok(vec![true; spec.blocks.len()]) };
    let blocks = chosen(spec, blocks)?;
    Ok((0..spec.blocks.len()).map(|b| blocks.contains(&b)).collect())
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
        let mut input = plan.input(&spec.id)?.clone();
        if plan.smoothed.contains_key(&spec.id) {
            // The layer that a rounder sees is smoothed already.
            input.multiplier = None;
        }
        let weight = plan.weight(&spec.id, session.model.weight(&spec.id)?)?;
        Ok(LayerJob { spec: spec.clone(), weight, grid, input })
    };
    block.layers.iter().map(job).collect()
}

/// Rounds a block, or takes it from the run folder if it is done; `name` is for people.
fn round_block(
    session: &Session,
    settings: &RoundSettings,
    plan: &ActivationPlan,
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
    let meter = Meter::start();
    memory::reset_peak_memory()?;
    // Blocks must not share a random stream, and a resumed block must have the stream it would have had.
    let context =
        Context { seed: derived_seed(session.cx.seed, job.block.id.as_str()), ..session.cx.clone() };
    let rounded = rounder.round(job, &context)?;
    check(settings, job.layers, &rounded.layers)?;
    let nearest = job.reconstruction.held_out_loss(&nearest_layers(job)?)?;
    let ours = job.reconstruction.held_out_loss(&job.quantized(&rounded.layers)?)?;
    let metrics = BlockMetrics {
        block_name: job.block.id.clone(),
        layers: job.layers.iter().zip(&rounded.layers).map(|(l, r)| (l.spec.id.clone(), r.grid)).collect(),
        nearest_loss: Some(nearest),
        final_loss: Some(ours),
        loss_history_stride100: rounded.losses.clone(),
    };
    let (seconds, peak_memory_bytes) = meter.stop();
    let cost = BlockCost { seconds, peak_memory_bytes, peak_array_bytes: memory::peak_memory()? };
    let block = &job.block.id;
    tracing::info!("{block}: held-out error {ours:.3e}, nearest {nearest:.3e}, {seconds:.1} s");
    write_rounded(&session.run.block_weights(block), plan, job.layers, rounded.layers)?;
    write_json(&session.run.block_cost(block), &cost)?;
    write_json(&record, &metrics)?;
    progress.end();
    Ok(metrics)
}

/// Writes what a rounder made of these layers, as it stands for them without smoothing.
fn write_rounded(
    path: &Path,
    plan: &ActivationPlan,
    layers: &[LayerJob],
    rounded: Vec<RoundedLayer>,
) -> Result<()> {
    let whole = |(job, rounded): (&LayerJob, RoundedLayer)| match plan.smoothed.get(&job.spec.id) {
        Some(smoothing) => smoothing.rounded(rounded, &job.input),
        None => Ok(rounded),
    };
    let whole = layers.iter().zip(rounded).map(whole).collect::<Result<Vec<_>>>()?;
    write_layers(path, layers.iter().map(|l| &l.spec.id).zip(&whole))
}

/// What learning is compared with: every weight rounded to nearest, clipped where its squared error is smallest; inputs
/// as planned.
fn nearest_layers(job: &BlockJob<'_>) -> Result<Vec<QuantizedLayer>> {
    let layer = |l: &LayerJob| nearest(&l.weight, &l.grid, Clipping::Mse)?.quantized(&l.input);
    job.layers.iter().map(layer).collect()
}

fn derived_seed(seed: u64, label: &str) -> u64 {
    let hash = blake3::hash(format!("{seed} {label}").as_bytes());
    hash.as_bytes()[..8].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn check(settings: &RoundSettings, layers: &[LayerJob], rounded: &[RoundedLayer]) -> Result<()> {
    let owner = || format!("rounder `{}`", settings.rounder.name);
    if rounded.len() != layers.len() {
        let reason = format!("it returned {} layers for {}", rounded.len(), layers.len());
        return Err(Error::settings(owner(), reason));
    }
    for (layer, rounded) in layers.iter().zip(rounded) {
        rounded.validate(&layer.spec, layer.input.steps()).map_err(|e| Error::settings(owner(), e))?;
    }
    Ok(())
}
