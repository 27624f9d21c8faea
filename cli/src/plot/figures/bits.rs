//! `bits_by_layer_and_step`: a plan at a glance.

use std::collections::BTreeSet;

use plotters::style::RGBColor;
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{MISSING, SEQUENTIAL, shade};
use crate::results::layers;
use crate::results::plan::bits_table;
use crate::results::sources::Sources;

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let plan = sources.plan()?;
    let mut ids: Vec<LayerId> = plan.weight_bits.keys().cloned().collect();
    layers::sort(&mut ids);
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let (steps, table) = bits_table(plan, &ids);
    let weights: Vec<Option<u8>> = ids.iter().map(|id| plan.weight_bits.get(id).copied()).collect();
    let labels: Vec<String> = steps
        .iter()
        .map(|s| plan.sigma_map.get(s).map_or_else(|| s.to_string(), |v| format!("{v:.2}")))
        .collect();
    let about = format!(
        "Policy {}. On average {:.2} bits for weights (over parameters) and {:.2} for activations (over layers and \
         steps).",
        plan.policy, plan.summary.average_weight_bits, plan.summary.average_activation_bits
    );
    let rows: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
    let row = (2400 / rows.len() as u32).clamp(8, 40);
    let size = (2000, 340 + row * rows.len().max(8) as u32);
    Ok(vec![Sheet::new("bits_by_layer_and_step", size, move |area| {
        let used: BTreeSet<u8> = table.iter().flatten().chain(&weights).flatten().copied().collect();
        let keys: Vec<Key> =
            used.iter().map(|&b| Key::new(format!("{b} bits"), colour(b), Mark::Block)).collect();
        let area = header(area, "Bits by layer and step", &about, &keys)?;
        let most = rows.len() * row as usize / 24;
        // The column of weights is as wide as two steps, and apart from them.
        let names: Vec<String> = labels.clone();
        let steps = Axis::bands("noise level σ of each step (sampling runs from left to right)", &names, 20);
        let mut ticks: Vec<_> =
            steps.ticks.iter().map(|(at, label)| (at + WEIGHTS + 0.5, label.clone())).collect();
        ticks.insert(0, (WEIGHTS / 2.0, "weights".to_owned()));
        let x = Axis { ticks, high: steps.high + WEIGHTS + 0.5, ..steps };
        let panel = Panel::new(&area, "", x, Axis::bands("", &rows, most).reversed())?;
        for (y, (row, weight)) in table.iter().zip(&weights).enumerate() {
            let y = y as f64;
            panel.block((0.0, y), (WEIGHTS, y + 1.0), weight.map_or(MISSING, colour))?;
            for (x, bits) in row.iter().enumerate() {
                let x = x as f64 + WEIGHTS + 0.5;
                panel.block((x, y), (x + 1.0, y + 1.0), bits.map_or(MISSING, colour))?;
            }
        }
        Ok(())
    })])
}

/// Width of the column of weights, in steps.
const WEIGHTS: f64 = 2.0;

/// 2 bits dark, 8 bits light.
fn colour(bits: u8) -> RGBColor {
    shade(&SEQUENTIAL, (f64::from(bits) - 2.0) / 6.0)
}
