//! `integers_<block>`: how often each integer occurs in the weights of a block's layers.

use taq_core::Result;
use taq_core::pipeline::BlockMetrics;

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, columns, grid, header};
use crate::plot::style::{BLUE, RED};
use crate::results::integers::{Integers, of_block};
use crate::results::layers::file_part;
use crate::results::sources::Sources;

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let config = sources.weights()?;
    config.block_metrics.iter().map(|block| sheet(sources, block)).collect()
}

fn sheet(sources: &Sources, block: &BlockMetrics) -> Result<Sheet> {
    let panels = of_block(&sources.run, block)?;
    let across = columns(panels.len());
    let size = (2400, 220 + 420 * panels.len().div_ceil(across).max(2) as u32);
    let heading = format!("Integers of the weights of {}", block.block_name);
    let titles: Vec<String> = panels.iter().map(|p| title(block, p)).collect();
    Ok(Sheet::new(format!("integers_{}", file_part(block.block_name.as_str())), size, move |area| {
        let keys = [
            Key::new("share of the weights", BLUE, Mark::Block),
            Key::new("ends of the grid, where weights are clipped", RED, Mark::Block),
        ];
        let about =
            "Much at the ends means a grid too narrow; little anywhere but around 0 means one too wide.";
        let area = header(area, &heading, about, &keys)?;
        let most = panels.iter().flat_map(|p| p.shares.iter().copied()).fold(0.0, f64::max);
        for ((shown, title), place) in panels.iter().zip(&titles).zip(grid(&area, panels.len(), across)) {
            let (low, count) = (f64::from(shown.lowest), shown.shares.len());
            let mut x = Axis::exact("integer", low - 0.5, low + count as f64 - 0.5);
            x.ticks.retain(|(at, _)| at.fract() == 0.0);
            x.mesh = false;
            let panel = Panel::new(&place, title, x, Axis::linear("share, %", 0.0, 100.0 * most))?;
            for (i, &share) in shown.shares.iter().enumerate() {
                let at = low + i as f64;
                let colour = if i == 0 || i + 1 == count { RED } else { BLUE };
                panel.block((at - 0.4, 0.0), (at + 0.4, 100.0 * share), colour)?;
            }
        }
        Ok(())
    }))
}

/// `img.attn.q_proj, 4 bits`
fn title(block: &BlockMetrics, shown: &Integers) -> String {
    let id = shown.layer.as_str();
    let id = id.strip_prefix(block.block_name.as_str()).unwrap_or(id);
    format!("{}, {} bits", id.trim_start_matches('.'), shown.bits)
}
