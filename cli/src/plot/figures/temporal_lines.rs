//! `temporal_lines`: magnitudes of chosen layers over the noise level, a panel a layer.

use taq_core::stats::LayerScalars;
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, columns, grid, header};
use crate::plot::style::{BLUE, GREEN, ORANGE, RED};
use crate::results::sources::Sources;

/// Panels in one file.
const PANELS: usize = 12;

type Lines = [Vec<f64>; 4];

pub(super) fn sheets(sources: &Sources, choice: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let sigmas = statistics.sigmas();
    let lines = |id: &LayerId| -> Lines {
        let of = |value: fn(&LayerScalars) -> Option<f32>| {
            statistics.row(id, |s| value(s).map_or(f64::NAN, f64::from))
        };
        [of(|s| Some(s.tensor_absmax)), of(|s| s.hist_p999), of(|s| s.hist_p99), of(|s| s.hist_p50)]
    };
    let panels: Vec<(LayerId, Lines)> = choice.layers.iter().map(|id| (id.clone(), lines(id))).collect();
    let pages = panels.chunks(PANELS).enumerate();
    Ok(pages.map(|(i, panels)| page(i, panels.to_vec(), sigmas.clone())).collect())
}

/// The name of the `i`-th file of a figure that takes several.
fn name(i: usize) -> String {
    if i == 0 { "temporal_lines".into() } else { format!("temporal_lines_{}", i + 1) }
}

fn page(i: usize, panels: Vec<(LayerId, Lines)>, sigmas: Vec<f64>) -> Sheet {
    let across = columns(panels.len());
    let down = panels.len().div_ceil(across) as u32;
    let size = (if across > 2 { 2400 } else { 2000 }, 220 + if down == 1 { 900 } else { 560 * down });
    Sheet::new(name(i), size, move |area| {
        let kinds = [("largest", RED), ("99.9 %", ORANGE), ("99 %", GREEN), ("median", BLUE)];
        let keys = kinds.map(|(text, colour)| Key::new(text, colour, Mark::Line));
        let about = "Largest magnitude, and the magnitudes below which so many of the values lie.";
        let area = header(area, "Magnitude of layers' inputs over time", about, &keys)?;
        for ((id, lines), place) in panels.iter().zip(grid(&area, panels.len(), across)) {
            let top = lines[0].iter().copied().fold(0.0, f64::max);
            let x = Axis { title: "noise level σ".into(), ..Axis::sigma() };
            let panel = Panel::new(&place, id.as_str(), x, Axis::linear("magnitude", 0.0, top))?;
            for (line, (_, colour)) in lines.iter().zip(kinds) {
                let points: Vec<_> = sigmas.iter().copied().zip(line.iter().copied()).collect();
                if points.iter().all(|(_, v)| v.is_finite()) {
                    panel.line(points.iter().copied(), colour, 5)?;
                    panel.dots(points, colour, 5)?;
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_files_are_numbered_from_two() {
        assert_eq!([name(0), name(1), name(2)], ["temporal_lines", "temporal_lines_2", "temporal_lines_3"]);
    }
}
