//! How rounding went, block by block.

use taq_core::pipeline::WeightsConfig;

use super::numbers::text;
use crate::output::{bytes, seconds};
use crate::results::rounding::{change, rounder};

/// One block, or all together.
pub(super) struct BlockRow {
    pub(super) name: String,
    /// Held-out error before and after.
    pub(super) before: String,
    pub(super) after: String,
    /// Its change, and whether it is for the worse.
    pub(super) change: String,
    pub(super) worse: bool,
    pub(super) time: String,
    pub(super) memory: String,
}

/// The section.
pub(super) struct Rounding {
    pub(super) rounder: String,
    pub(super) rows_learned: usize,
    pub(super) rows_held_out: usize,
    /// Whether any block has a curve.
    pub(super) learned: bool,
    pub(super) rows: Vec<BlockRow>,
    pub(super) end_to_end: Option<BlockRow>,
}

impl Rounding {
    pub(super) fn of(config: &WeightsConfig) -> Self {
        let row = |name: String, losses: Option<(f32, f32)>, cost: Option<&taq_core::pipeline::BlockCost>| {
            let figure = |of: &dyn Fn(f32, f32) -> String| losses.map(|(a, b)| of(a, b)).unwrap_or_default();
            BlockRow {
                name,
                before: figure(&|before, _| text(before.into())),
                after: figure(&|_, after| text(after.into())),
                change: figure(&|before, after| change(before.into(), after.into())),
                worse: losses.is_some_and(|(before, after)| after > before),
                time: cost.map(|c| seconds(c.seconds)).unwrap_or_default(),
                memory: cost.map(|c| bytes(c.peak_memory_bytes as u64)).unwrap_or_default(),
            }
        };
        let blocks = config.block_metrics.iter();
        Self {
            rounder: rounder(&config.rounder),
            rows_learned: config.rows,
            rows_held_out: config.held_out_rows,
            learned: config.block_metrics.iter().any(|b| !b.loss_history_stride100.is_empty()),
            rows: blocks
                .map(|b| {
                    let cost = config.costs.get(&b.block_name);
                    row(b.block_name.to_string(), b.nearest_loss.zip(b.final_loss), cost)
                })
                .collect(),
            end_to_end: config.end_to_end.as_ref().map(|e| {
                row("all blocks together".into(), Some((e.before_loss, e.final_loss)), Some(&e.cost))
            }),
        }
    }
}
