//! `channel_distribution_<layer>`: how large each channel is, and which few stand out.

use taq_core::stats::quantile_f64;
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::{Axis, number};
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{BLUE, GREEN, INK, RED, SIZE};
use crate::results::layers::file_part;
use crate::results::sources::Sources;
use crate::results::statistics::Statistics;

/// The share of channels that counts as outliers.
const TOP: f64 = 0.02;
/// Outliers with their number beside them.
const NAMED: usize = 5;
/// Bars of the histogram over channels.
const BARS: usize = 40;

pub(super) fn sheets(sources: &Sources, choice: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    choice.layers.iter().map(|layer| sheet(statistics, layer)).collect()
}

/// The position of the step at which the layer's input is largest.
pub(super) fn largest_step(row: &[f64]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at)
}

/// The largest channels, largest first: at least one, and a share [`TOP`] of all.
fn outliers(magnitudes: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..magnitudes.len()).collect();
    order.sort_by(|&a, &b| magnitudes[b].total_cmp(&magnitudes[a]));
    order.truncate(((magnitudes.len() as f64 * TOP).round() as usize).max(1));
    order
}

/// How many of the values lie in each of equal bins from 0 to the largest.
fn bins(values: &[f64], count: usize) -> Vec<usize> {
    let top = values.iter().copied().fold(0.0, f64::max);
    let mut counts = vec![0; count];
    for value in values {
        let place = if top > 0.0 { value / top * count as f64 } else { 0.0 };
        counts[(place as usize).min(count - 1)] += 1;
    }
    counts
}

fn sheet(statistics: &Statistics, layer: &LayerId) -> Result<Sheet> {
    let at = largest_step(&statistics.row(layer, |s| f64::from(s.tensor_absmax)));
    let step = &statistics.steps[at];
    let channels = statistics.channels(at, layer)?;
    let magnitudes: Vec<f64> =
        channels.low.iter().zip(&channels.high).map(|(a, b)| f64::from(a.abs().max(b.abs()))).collect();
    let largest = outliers(&magnitudes);
    let median = quantile_f64(&magnitudes, 0.5).unwrap_or(0.0);
    let limit = largest.last().map_or(0.0, |&c| magnitudes[c]);
    let title = format!("Channels of the input of {layer}");
    let about = format!(
        "Step {}, σ = {:.2}, where the input is largest: {} channels, the largest {} times the median.",
        step.step,
        step.sigma,
        magnitudes.len(),
        number(magnitudes[largest[0]] / median.max(f64::MIN_POSITIVE))
    );
    Ok(Sheet::new(format!("channel_distribution_{}", file_part(layer.as_str())), SIZE, move |area| {
        let keys = [
            Key::new(format!("top 2 % of the channels ({})", largest.len()), RED, Mark::Dot),
            Key::new("the others", BLUE, Mark::Dot),
            Key::new("median", GREEN, Mark::Line),
        ];
        let area = header(area, &title, &about, &keys)?;
        let (left, right) = area.split_horizontally(area.dim_in_pixel().0 * 2 / 3);
        let top = magnitudes.iter().copied().fold(0.0, f64::max);
        let count = magnitudes.len() as f64;
        let scale = Axis::linear("largest magnitude of the channel", 0.0, top);
        let panel = Panel::new(&left, "", Axis::exact("channel", 0.0, count), scale.clone())?;
        for (channel, &magnitude) in magnitudes.iter().enumerate().filter(|(c, _)| !largest.contains(c)) {
            panel.dots([(channel as f64, magnitude)], BLUE, 5)?;
        }
        panel.line([(0.0, median), (count, median)], GREEN, 5)?;
        let places: Vec<_> = largest.iter().map(|&channel| (channel as f64, magnitudes[channel])).collect();
        panel.dots(places.iter().copied(), RED, 9)?;
        for (channel, place) in largest.iter().zip(places).take(NAMED) {
            panel.note(place, &channel.to_string(), INK)?;
        }
        let counts = bins(&magnitudes, BARS);
        let most = counts.iter().copied().max().unwrap_or(1) as f64;
        let panel = Panel::new(
            &right,
            "",
            Axis::linear("channels", 0.0, most),
            Axis { title: String::new(), ..scale },
        )?;
        for (bin, &count) in counts.iter().enumerate() {
            let edge = |i: usize| top * i as f64 / BARS as f64;
            let colour = if edge(bin + 1) > limit { RED } else { BLUE };
            panel.block((0.0, edge(bin)), (count as f64, edge(bin + 1)), colour)?;
        }
        panel.line([(0.0, median), (most, median)], GREEN, 5)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_the_top_two_percent() {
        let magnitudes: Vec<f64> = (0..200).map(|i| f64::from((i * 77) % 200)).collect();
        let found = outliers(&magnitudes);
        assert_eq!(found.iter().map(|&c| magnitudes[c]).collect::<Vec<_>>(), [199.0, 198.0, 197.0, 196.0]);
        assert_eq!(outliers(&[1.0, 3.0, 2.0]), [1]);
    }

    #[test]
    fn bins_hold_every_channel() {
        assert_eq!(bins(&[0.0, 1.0, 1.9, 2.0, 4.0], 4), [1, 2, 1, 1]);
        assert_eq!(bins(&[0.0, 0.0], 3), [2, 0, 0]);
    }

    #[test]
    fn the_largest_step_is_found() {
        assert_eq!(largest_step(&[1.0, 7.0, 3.0]), 1);
    }
}
