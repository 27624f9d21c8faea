//! `loss_curves`: how learning went, block by block.

use taq_core::{LOSS_STRIDE, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{LINES, SEQUENTIAL, SIZE, shade};
use crate::results::rounding::{curve, rounder};
use crate::results::sources::Sources;

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let config = sources.weights()?;
    let curves: Vec<(String, Vec<(f64, f64)>)> =
        config.block_metrics.iter().filter_map(|b| Some((b.block_name.to_string(), curve(b)?))).collect();
    if curves.is_empty() {
        return Ok(Vec::new());
    }
    let rounder = rounder(&config.rounder);
    let title = format!("Training loss of every block: {rounder} on {}", config.model_version);
    let about = format!(
        "Mean squared error of a block's outputs over the batch, every {LOSS_STRIDE} iterations; learned from {} rows.",
        config.rows
    );
    Ok(vec![Sheet::new("loss_curves", SIZE, move |area| {
        let count = curves.len();
        let colour = |i: usize| match LINES.get(i) {
            Some(colour) if count <= LINES.len() => *colour,
            // Of many blocks, the first dark and the last light.
            _ => shade(&SEQUENTIAL, 0.9 * i as f64 / (count - 1) as f64),
        };
        let keys: Vec<Key> =
            curves.iter().enumerate().map(|(i, (name, _))| Key::new(name, colour(i), Mark::Line)).collect();
        let area = header(area, &title, &about, &keys)?;
        let last = curves.iter().flat_map(|(_, c)| c.iter().map(|p| p.0)).fold(0.0, f64::max);
        let y = Axis::log("training loss", curves.iter().flat_map(|(_, c)| c.iter().map(|p| p.1)));
        let panel = Panel::new(&area, "", Axis::linear("iteration", 0.0, last), y)?;
        for (i, (_, curve)) in curves.iter().enumerate() {
            panel.line(curve.iter().copied(), colour(i), 5)?;
            panel.dots(curve.iter().copied(), colour(i), 8)?;
        }
        Ok(())
    })])
}
