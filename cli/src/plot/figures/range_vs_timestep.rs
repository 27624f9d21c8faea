//! `range_vs_timestep_all`, `_image`, `_text`: how the range of the layers' inputs goes with the noise level.

use taq_core::stats::quantile_f64;
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{INK, LINES, PALE, SIZE};
use crate::results::layers::{Stream, stream};
use crate::results::sources::Sources;
use crate::results::statistics::{Statistics, range};

/// Layers with a colour of their own.
const NAMED: usize = 5;

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let of = |wanted: Stream| -> Vec<LayerId> {
        statistics.layers.iter().filter(|id| stream(id) == Some(wanted)).cloned().collect()
    };
    let groups = [
        ("all", "all layers", statistics.layers.clone()),
        ("image", "layers of the image stream", of(Stream::Image)),
        ("text", "layers of the text stream", of(Stream::Text)),
    ];
    let groups = groups.into_iter().filter(|(_, _, layers)| !layers.is_empty());
    Ok(groups.map(|(name, who, layers)| sheet(statistics, name, who, &layers)).collect())
}

/// The median over the layers, at each step.
fn medians(rows: &[Vec<f64>]) -> Vec<f64> {
    let steps = rows.first().map_or(0, Vec::len);
    let column = |step: usize| rows.iter().filter_map(|row| row.get(step).copied()).collect::<Vec<_>>();
    (0..steps).filter_map(|step| quantile_f64(&column(step), 0.5)).collect()
}

fn sheet(statistics: &Statistics, name: &str, who: &str, layers: &[LayerId]) -> Sheet {
    let sigmas = statistics.sigmas();
    let rows: Vec<Vec<f64>> = layers.iter().map(|id| statistics.row(id, range)).collect();
    let named: Vec<(LayerId, Vec<f64>)> = statistics
        .most_variable(layers)
        .into_iter()
        .take(NAMED)
        .map(|id| (id.clone(), statistics.row(&id, range)))
        .collect();
    let middle = medians(&rows);
    let title = format!("Range of the layers' inputs over time: {who}");
    let about = format!(
        "One line for each of {} layers. Named are the {} whose range changes most; of layers with the same input, \
         the first.",
        layers.len(),
        named.len()
    );
    Sheet::new(format!("range_vs_timestep_{name}"), SIZE, move |area| {
        let mut keys = vec![Key::new("median of the layers", INK, Mark::Line)];
        keys.extend(named.iter().zip(LINES).map(|((id, _), c)| Key::new(id.as_str(), c, Mark::Line)));
        let area = header(area, &title, &about, &keys)?;
        let y = Axis::log("range, largest − smallest value", rows.iter().flatten().copied());
        let panel = Panel::new(&area, "", Axis::sigma(), y)?;
        let points = |row: &[f64]| sigmas.iter().copied().zip(row.to_vec()).collect::<Vec<_>>();
        for row in &rows {
            panel.line(points(row), PALE, 2)?;
        }
        for ((_, row), colour) in named.iter().zip(LINES) {
            panel.line(points(row), colour, 5)?;
        }
        panel.line(points(&middle), INK, 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_line_is_the_median_of_each_step() {
        let rows = [vec![1.0, 10.0], vec![3.0, 30.0], vec![2.0, 50.0], vec![9.0, 20.0]];
        assert_eq!(medians(&rows), [2.5, 25.0]);
        assert!(medians(&[]).is_empty());
    }
}
