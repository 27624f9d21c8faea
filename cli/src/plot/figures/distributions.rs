//! `distribution_<layer>`: the values' whole distribution at every step.

use taq_core::{LayerId, Result};

use super::{Sheet, histogram};
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{RED, SEQUENTIAL, SIZE, shade};
use crate::results::layers::file_part;
use crate::results::sources::Sources;

/// Shares of the values per unit of the axis that get the darkest colour: so much less than the densest bin.
const DECADES: f64 = 5.0;

/// What counts as the width of a bin that has none: that of a constant input.
const NARROW: f64 = 1e-30;

/// Bins with their densities, and the ends of the plan's grid.
type Column = (Vec<(f64, f64, f64)>, Option<(f64, f64)>);

pub(super) fn sheets(sources: &Sources, choice: &Choice) -> Result<Vec<Sheet>> {
    let (statistics, plan) = (sources.statistics()?, sources.plan().ok());
    let mut sheets = Vec::new();
    for layer in &choice.layers {
        let mut steps: Vec<Column> = Vec::new();
        for (at, step) in statistics.steps.iter().enumerate() {
            let Some(values) = statistics.histogram(at, layer)? else { continue };
            // A shifted grid is elsewhere for each channel.
            let grid = plan.and_then(|p| p.per_timestep.get(&step.step)?.get(layer)).filter(|g| !g.shift);
            let ends = grid.map(|g| (-f64::from(g.absmax), f64::from(g.absmax)));
            steps.push((densities(histogram::shares(&values)), ends));
        }
        if steps.len() == statistics.steps.len() {
            sheets.push(sheet(layer, steps, statistics.sigma_labels()));
        }
    }
    Ok(sheets)
}

/// Shares per unit of the axis: what remains comparable where bins differ in width.
fn densities(shares: Vec<(f64, f64, f64)>) -> Vec<(f64, f64, f64)> {
    shares.into_iter().map(|(low, high, share)| (low, high, share / (high - low).max(NARROW))).collect()
}

/// Every value that the axis must hold.
fn extent((bins, ends): &Column) -> impl Iterator<Item = f64> {
    bins.iter().flat_map(|b| [b.0, b.1]).chain(ends.iter().flat_map(|e| [e.0, e.1]))
}

fn sheet(layer: &LayerId, steps: Vec<Column>, labels: Vec<String>) -> Sheet {
    let title = format!("Distribution of the input of {layer} over time");
    Sheet::new(format!("distribution_{}", file_part(layer.as_str())), SIZE, move |area| {
        let top = steps.iter().flat_map(|(bins, _)| bins.iter().map(|b| b.2)).fold(0.0, f64::max);
        let colour = |density: f64| shade(&SEQUENTIAL, 1.0 + (density / top).log10() / DECADES);
        let names = ["the densest", "0.1", "0.01", "0.001", "0.0001", "0.00001 or less"].iter().enumerate();
        let mut keys: Vec<Key> =
            names.map(|(i, text)| Key::new(*text, colour(top / 10f64.powi(i as i32)), Mark::Block)).collect();
        if steps.iter().any(|(_, ends)| ends.is_some()) {
            keys.push(Key::new("ends of the plan's grid", RED, Mark::Line));
        }
        let area = header(
            area,
            &title,
            "How densely the values lie, as a share of the densest place. White: no values.",
            &keys,
        )?;
        let (low, high) = steps
            .iter()
            .flat_map(extent)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let x = Axis::bands("noise level σ of each step (sampling runs from left to right)", &labels, 20);
        let panel = Panel::new(&area, "", x, Axis::linear("value", low, high))?;
        for (x, (bins, ends)) in steps.iter().enumerate() {
            let x = x as f64;
            for &(low, high, density) in bins {
                panel.block((x, low), (x + 1.0, high), colour(density))?;
            }
            for end in ends.iter().flat_map(|(low, high)| [*low, *high]) {
                panel.line([(x, end), (x + 1.0, end)], RED, 4)?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_holds_the_values_and_the_grid() {
        let column = (vec![(-1.0, 0.0, 0.5), (0.0, 2.0, 0.25)], Some((-3.0, 3.0)));
        assert_eq!(extent(&column).collect::<Vec<_>>(), [-1.0, 0.0, 0.0, 2.0, -3.0, 3.0]);
    }

    #[test]
    fn densities_do_not_depend_on_the_width_of_bins() {
        assert!(densities(vec![(3.0, 3.0, 1.0)])[0].2.is_finite());
        assert_eq!(densities(vec![(0.0, 2.0, 0.5), (2.0, 3.0, 0.25)]), [(0.0, 2.0, 0.25), (2.0, 3.0, 0.25)]);
    }
}
