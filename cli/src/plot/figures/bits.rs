//! `bits_by_layer_and_step`: a plan at a glance.

use std::collections::BTreeSet;

use plotters::style::RGBColor;
use taq_core::plan::QuantConfig;
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::axis::Axis;
use crate::plot::layers;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::sources::{Choice, Sources};
use crate::plot::style::{MISSING, SEQUENTIAL, shade};

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let plan = sources.plan()?;
    let mut ids: Vec<LayerId> = plan.weight_bits.keys().cloned().collect();
    layers::sort(&mut ids);
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let (steps, table) = table(plan, &ids);
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

/// Steps with σ falling, and the bits of each layer at each of them.
fn table(plan: &QuantConfig, ids: &[LayerId]) -> (Vec<usize>, Vec<Vec<Option<u8>>>) {
    let mut steps: Vec<usize> = plan.per_timestep.keys().copied().collect();
    let sigma = |step: &usize| plan.sigma_map.get(step).copied().unwrap_or(0.0);
    steps.sort_by(|a, b| sigma(b).total_cmp(&sigma(a)));
    let bits = |id: &LayerId, step: &usize| plan.per_timestep[step].get(id).map(|grid| grid.bits);
    let table = ids.iter().map(|id| steps.iter().map(|step| bits(id, step)).collect()).collect();
    (steps, table)
}

#[cfg(test)]
mod tests {
    use taq_core::plan::{ActivationGrid, PlanSummary, QUANT_CONFIG_FORMAT};

    use super::*;

    #[test]
    fn steps_run_from_noise_to_image_and_gaps_stay_gaps() {
        let grid = |bits| ActivationGrid { bits, absmax: 1.0, scale: 0.1, shift: false };
        let at = |cells: &[(&str, u8)]| cells.iter().map(|&(id, b)| (id.into(), grid(b))).collect();
        let plan = QuantConfig {
            format: QUANT_CONFIG_FORMAT.into(),
            model: String::new(),
            policy: "p".into(),
            weight_bits: [("a".into(), 4), ("b".into(), 8)].into(),
            per_timestep: [(0, at(&[("a", 4), ("b", 6)])), (9, at(&[("a", 8)]))].into(),
            sigma_map: [(0, 0.25), (9, 1.0)].into(),
            summary: PlanSummary {
                total_timesteps: 2,
                total_layers: 2,
                total_decisions: 4,
                average_weight_bits: 6.0,
                average_activation_bits: 6.0,
                post_gelu_layers_with_shift: 0,
            },
        };
        let (steps, table) = table(&plan, &["a".into(), "b".into()]);
        assert_eq!(steps, [9, 0]);
        assert_eq!(table, [[Some(8), Some(4)], [None, Some(6)]]);
    }
}
