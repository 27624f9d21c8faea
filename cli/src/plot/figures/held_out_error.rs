//! `held_out_error`: what rounding was worth, block by block, on rows that nothing was learned from.

use taq_core::Result;

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{BLUE, INK, ORANGE, PALE, SIZE};
use crate::results::rounding::{change, rounder};
use crate::results::sources::Sources;

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let config = sources.weights()?;
    let blocks: Vec<(String, f64, f64)> = config
        .block_metrics
        .iter()
        .filter_map(|b| {
            Some((b.block_name.to_string(), f64::from(b.nearest_loss?), f64::from(b.final_loss?)))
        })
        .collect();
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let rounder = rounder(&config.rounder);
    let title = format!("Held-out error of every block: {}", config.model_version);
    let about = format!(
        "Mean squared error of a block's outputs on {} rows that nothing was learned from. Lower is better; the number \
         is the change against nearest.",
        config.held_out_rows
    );
    Ok(vec![Sheet::new("held_out_error", SIZE, move |area| {
        let keys =
            [Key::new("rounded to nearest", ORANGE, Mark::Dot), Key::new(rounder.as_str(), BLUE, Mark::Dot)];
        let area = header(area, &title, &about, &keys)?;
        let names: Vec<String> = blocks.iter().map(|(name, _, _)| name.clone()).collect();
        let y = Axis::log("mean squared error", blocks.iter().flat_map(|b| [b.1, b.2]));
        let panel = Panel::new(&area, "", Axis::bands("block", &names, 30), y)?;
        for (i, (_, nearest, chosen)) in blocks.iter().enumerate() {
            let x = i as f64 + 0.5;
            panel.line([(x, *nearest), (x, *chosen)], PALE, 8)?;
            panel.dots([(x, *nearest)], ORANGE, 13)?;
            panel.dots([(x, *chosen)], BLUE, 13)?;
        }
        for (i, (_, nearest, chosen)) in blocks.iter().enumerate() {
            panel.note((i as f64 + 0.5, *chosen), &change(*nearest, *chosen), INK)?;
        }
        Ok(())
    })])
}
