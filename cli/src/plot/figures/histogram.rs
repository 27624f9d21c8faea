//! `histogram_<layer>`: values at a few steps, with the shift and the grid of the plan.

use taq_core::plan::{ActivationGrid, QuantConfig};
use taq_core::stats::{Histogram, quantile_f64};
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::{Axis, number};
use crate::plot::canvas::Painted;
use crate::plot::panel::{Key, Mark, Panel, columns, grid, header};
use crate::plot::style::{BLUE, GREEN, RED};
use crate::results::layers::file_part;
use crate::results::sources::Sources;
use crate::results::statistics::Statistics;

const ABOUT: &str =
    "The outermost bins hold also what lies beyond them. A shifted grid is drawn around the mean shift.";
/// Room between the points of a grid, in pixels, below which they are not drawn one by one.
const APART: i32 = 6;

/// What one panel shows.
struct Shown {
    title: String,
    /// Lower edge, upper edge, share of the values, for every bin that holds some.
    bars: Vec<(f64, f64, f64)>,
    /// 5 % quantile, mean and 95 % quantile over the channels.
    shift: Option<[f64; 3]>,
    /// The points of the grid.
    grid: Option<Vec<f64>>,
}

pub(super) fn sheets(sources: &Sources, choice: &Choice) -> Result<Vec<Sheet>> {
    let (statistics, plan) = (sources.statistics()?, sources.plan().ok());
    let mut sheets = Vec::new();
    for layer in &choice.layers {
        let shown = |&at: &usize| shown(statistics, plan, layer, at);
        let panels: Option<Vec<Shown>> =
            choice.snapshots.iter().map(shown).collect::<Result<Option<Vec<_>>>>()?;
        sheets.extend(panels.map(|panels| sheet(layer, panels)));
    }
    Ok(sheets)
}

/// Every bin that holds values, with its share of all.
pub(super) fn shares(histogram: &Histogram) -> Vec<(f64, f64, f64)> {
    let total: u64 = histogram.counts.iter().sum();
    let bins = histogram.edges.windows(2).zip(&histogram.counts).filter(|(_, count)| **count > 0);
    bins.map(|(e, &count)| (e[0].into(), e[1].into(), count as f64 / total as f64)).collect()
}

/// The values that a grid has points at, around the mean shift if there is one.
fn points(grid: &ActivationGrid, centre: f64) -> Vec<f64> {
    let most = (1i64 << (grid.bits - 1)) - 1;
    (-most - 1..=most).map(|q| centre + q as f64 * f64::from(grid.scale)).collect()
}

fn shown(
    statistics: &Statistics,
    plan: Option<&QuantConfig>,
    layer: &LayerId,
    at: usize,
) -> Result<Option<Shown>> {
    let step = &statistics.steps[at];
    let Some(histogram) = statistics.histogram(at, layer)? else { return Ok(None) };
    let shift: Vec<f64> =
        statistics.channels(at, layer)?.shift.iter().flatten().map(|&v| f64::from(v)).collect();
    let over = |q| quantile_f64(&shift, q).unwrap_or(0.0);
    let mean = shift.iter().sum::<f64>() / shift.len().max(1) as f64;
    let grid = plan.and_then(|p| p.per_timestep.get(&step.step)?.get(layer)).filter(|g| g.bits <= 16);
    let bits = grid.map_or_else(String::new, |g| {
        format!(
            ": {} bits, {} apart{}",
            g.bits,
            number(g.scale.into()),
            if g.shift { ", shifted" } else { "" }
        )
    });
    Ok(Some(Shown {
        title: format!("Step {}, σ = {:.2}{bits}", step.step, step.sigma),
        bars: shares(&histogram),
        shift: (!shift.is_empty()).then(|| [over(0.05), mean, over(0.95)]),
        grid: grid.map(|g| points(g, if g.shift { mean } else { 0.0 })),
    }))
}

fn sheet(layer: &LayerId, panels: Vec<Shown>) -> Sheet {
    let title = format!("Values of the input of {layer}");
    let across = columns(panels.len());
    let size =
        (if across > 2 { 2700 } else { 2200 }, 220 + 560 * panels.len().div_ceil(across).max(2) as u32);
    Sheet::new(format!("histogram_{}", file_part(layer.as_str())), size, move |area| {
        let mut keys = vec![Key::new("share of the values in a bin", BLUE, Mark::Block)];
        if panels.iter().any(|p| p.grid.is_some()) {
            keys.push(Key::new("grid of the plan: its points and ends", RED, Mark::Line));
        }
        if panels.iter().any(|p| p.shift.is_some()) {
            keys.push(Key::new("shift: mean and middle 90 % of the channels", GREEN, Mark::Line));
        }
        let area = header(area, &title, ABOUT, &keys)?;
        let all = panels.iter().flat_map(|p| {
            let bars = p.bars.iter().flat_map(|b| [b.0, b.1]);
            bars.chain(p.grid.iter().flat_map(|g| [g[0], g[g.len() - 1]]))
        });
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let smallest = panels.iter().flat_map(|p| p.bars.iter().map(|b| b.2));
        let y = Axis::log("share of the values", smallest.chain([1e-3, 1.0]));
        for (shown, place) in panels.iter().zip(grid(&area, panels.len(), across)) {
            let x = Axis { mesh: false, ..Axis::linear("value", low, high) };
            draw(&Panel::new(&place, &shown.title, x, y.clone())?, shown)?;
        }
        Ok(())
    })
}

fn draw(panel: &Panel<'_>, shown: &Shown) -> Painted {
    if let Some([low, _, high]) = shown.shift {
        panel.block((low, 0.0), (high, 1.0), GREEN_SHADE)?;
    }
    for &(low, high, share) in &shown.bars {
        panel.block((low, 0.0), (high, share), BLUE)?;
    }
    if let Some([_, mean, _]) = shown.shift {
        panel.line([(mean, 0.0), (mean, 1.0)], GREEN, 4)?;
    }
    let Some(points) = &shown.grid else { return Ok(()) };
    let (first, last) = (points[0], points[points.len() - 1]);
    for end in [first, last] {
        panel.line([(end, 0.0), (end, 1.0)], RED, 4)?;
    }
    if points.len() > 1 && panel.pixels_across(points[0], points[1]) >= APART {
        points.iter().try_for_each(|&at| panel.line([(at, RUG), (at, 1.0)], RED, 2))
    } else {
        panel.block((first, RUG), (last, 1.0), RED)
    }
}

/// How far the points of a grid reach down from the upper edge of a panel, as a share of the values.
const RUG: f64 = 0.5;
const GREEN_SHADE: plotters::style::RGBColor = plotters::style::RGBColor(196, 232, 220);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_all_values_and_empty_bins_are_left_out() {
        let histogram = Histogram { counts: vec![6, 0, 2], edges: vec![-1.0, 0.0, 1.0, 2.0] };
        assert_eq!(shares(&histogram), [(-1.0, 0.0, 0.75), (1.0, 2.0, 0.25)]);
        assert!(shares(&Histogram::default()).is_empty());
    }

    #[test]
    fn grids_have_a_point_for_each_integer() {
        let grid = ActivationGrid { bits: 3, absmax: 1.5, scale: 0.5, shift: true };
        assert_eq!(points(&grid, 0.25), [-1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 1.75]);
    }
}
