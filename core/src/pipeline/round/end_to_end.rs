//! After the last block: all of them at once.
//!
//! New weights are first written beside the old ones, then the record that says that all are there, then they take the
//! old ones' places: a killed run either does it all again from the same start, or goes on with the renaming.

use std::ops::Range;

use mlx_rs::memory;

use super::weights::load_rounded;
use super::{BlockCost, BlockMetrics, EndToEndMetrics, check, derived_seed, layer_jobs, write_rounded};
use crate::artifacts::{read_json, write_json};
use crate::manifest::RoundSettings;
use crate::pipeline::Session;
use crate::pipeline::boundary::Boundary;
use crate::pipeline::meter::Meter;
use crate::pipeline::quantized::ActivationPlan;
use crate::pipeline::reconstruction::{BlockReconstruction, Guided};
use crate::plan::QuantConfig;
use crate::{BlockJob, BlockSpec, Context, Error, LayerJob, Reconstruction, Result, RoundedLayer, Rounder};

/// All blocks, rounded one by one.
pub(super) struct AllBlocks<'a> {
    pub blocks: Range<usize>,
    pub config: &'a QuantConfig,
    pub plan: &'a ActivationPlan,
    /// What the first of them sees, and what full precision puts out of the last.
    pub inputs: &'a Boundary,
    pub targets: &'a Boundary,
    /// Rows of the boundaries to learn from.
    pub learn: usize,
    pub guidance: Option<Guided>,
    pub metrics: &'a [BlockMetrics],
}

/// Lets the rounder look at all blocks, if it wants to; `None` if not.
pub(super) fn end_to_end(
    session: &Session,
    settings: &RoundSettings,
    rounder: &dyn Rounder,
    all: &AllBlocks<'_>,
) -> Result<Option<EndToEndMetrics>> {
    let iterations = rounder.end_to_end_iterations();
    if iterations == 0 || all.metrics.is_empty() {
        return Ok(None);
    }
    let (run, spec) = (&session.run, session.model.spec());
    let rounded_blocks: Vec<(&BlockSpec, &BlockMetrics)> = all
        .metrics
        .iter()
        .filter_map(|m| spec.block_index(&m.block_name).map(|index| (&spec.blocks[index], m)))
        .collect();
    let record = run.tuned_record();
    if !record.exists() {
        let progress = &session.cx.progress;
        progress.begin("round all blocks together", iterations);
        let mut jobs: Vec<LayerJob> = Vec::new();
        let mut lengths = Vec::new();
        for (block, _) in &rounded_blocks {
            let of_block = layer_jobs(session, block, settings, all.config, all.plan)?;
            lengths.push(of_block.len());
            jobs.extend(of_block);
        }
        let rounded = load_rounded(run, all.plan, rounded_blocks.iter().copied())?;
        let as_made = |(id, layer)| match all.plan.smoothed.get(&id) {
            Some(smoothing) => smoothing.unrounded(layer),
            None => layer,
        };
        let rounded: Vec<RoundedLayer> = rounded.into_iter().map(as_made).collect();
        let reconstruction = BlockReconstruction {
            model: &*session.model,
            blocks: all.blocks.clone(),
            plan: all.plan,
            layers: &jobs,
            inputs: all.inputs,
            exact_inputs: all.inputs,
            targets: all.targets,
            learn: all.learn,
            guidance: all.guidance,
            importance: None,
        };
        let block =
            BlockSpec { id: "all blocks".into(), layers: jobs.iter().map(|j| j.spec.clone()).collect() };
        let job = BlockJob { block: &block, layers: &jobs, reconstruction: &reconstruction };
        let held_out = |layers: &[RoundedLayer]| reconstruction.held_out_loss(&job.quantized(layers)?);
        let meter = Meter::start();
        memory::reset_peak_memory()?;
        let before_loss = held_out(&rounded)?;
        let cx = Context { seed: derived_seed(session.cx.seed, "end to end"), ..session.cx.clone() };
        let Some(tuned) = rounder.end_to_end(&job, rounded.clone(), &cx)? else {
            progress.end();
            return Ok(None);
        };
        check(settings, &jobs, &tuned.layers)?;
        let after = held_out(&tuned.layers)?;
        let better = after <= before_loss;
        if !better {
            tracing::warn!(
                "looking at all blocks together made the held-out error larger ({after:.4e}, before {before_loss:.4e}); \
                 the blocks are kept as they were"
            );
        }
        let layers = if better { &tuned.layers } else { &rounded };
        let mut at = 0;
        for ((block, _), length) in rounded_blocks.iter().zip(lengths) {
            let part = at..at + length;
            let path = run.tuned_weights(&block.id);
            write_rounded(&path, all.plan, &jobs[part.clone()], layers[part].to_vec())?;
            at += length;
        }
        let (seconds, peak_memory_bytes) = meter.stop();
        let metrics = EndToEndMetrics {
            before_loss,
            final_loss: after.min(before_loss),
            loss_history_stride100: tuned.losses,
            cost: BlockCost { seconds, peak_memory_bytes, peak_array_bytes: memory::peak_memory()? },
        };
        tracing::info!("all blocks: held-out error {:.3e}, before {before_loss:.3e}", metrics.final_loss);
        write_json(&record, &metrics)?;
        progress.end();
    }
    for (block, _) in rounded_blocks {
        let (from, to) = (run.tuned_weights(&block.id), run.block_weights(&block.id));
        if from.exists() {
            std::fs::rename(&from, &to).map_err(Error::io("write", &to))?;
        }
    }
    Ok(Some(read_json(&record, "record of all blocks")?))
}
