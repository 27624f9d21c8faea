//! `variability_scatter`: how much a layer's range changes over the steps, against how large it is.

use plotters::style::RGBColor;
use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{BLUE, FAINT, GREEN, INK, ORANGE, RED, SIZE};
use crate::results::layers::{Stream, stream};
use crate::results::sources::Sources;
use crate::results::statistics::variability;

/// Layers whose name stands beside their point.
const NAMED: usize = 8;

/// Mean over the steps, and largest over smallest.
fn point(row: &[f64]) -> (f64, f64) {
    (row.iter().sum::<f64>() / row.len().max(1) as f64, variability(row))
}

/// What kind of layer it is, and its colour.
fn kind(id: &LayerId) -> (&'static str, RGBColor) {
    let mlp = id.as_str().split('.').any(|part| part == "mlp");
    match (stream(id), mlp) {
        (Some(Stream::Image), false) => ("image, attention", BLUE),
        (Some(Stream::Image), true) => ("image, MLP", GREEN),
        (Some(Stream::Text), false) => ("text, attention", ORANGE),
        (Some(Stream::Text), true) => ("text, MLP", RED),
        (None, _) => ("others", FAINT),
    }
}

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let rows = statistics.table(|s| f64::from(s.tensor_absmax));
    let points: Vec<(LayerId, (f64, f64))> =
        statistics.layers.iter().cloned().zip(rows.iter().map(|row| point(row))).collect();
    let named: Vec<LayerId> = statistics.most_variable(&statistics.layers).into_iter().take(NAMED).collect();
    Ok(vec![Sheet::new("variability_scatter", SIZE, move |area| {
        let mut keys: Vec<Key> = Vec::new();
        for (text, colour) in points.iter().map(|(id, _)| kind(id)) {
            if keys.iter().all(|k| k.text != text) {
                keys.push(Key::new(text, colour, Mark::Dot));
            }
        }
        let about = "One point for each layer. High up, one grid for all steps wastes bits: the range at some steps is \
                     much smaller than at others.";
        let area = header(area, "How much the layers' ranges change over time", about, &keys)?;
        let x = Axis::log("mean over the steps of the largest magnitude", points.iter().map(|(_, p)| p.0));
        let y = Axis::log("largest ÷ smallest of it over the steps", points.iter().map(|(_, p)| p.1));
        let panel = Panel::new(&area, "", x, y)?;
        for (id, at) in &points {
            panel.dots([*at], kind(id).1, 11)?;
        }
        for (id, at) in points.iter().filter(|(id, _)| named.contains(id)) {
            panel.note((at.0, at.1), id.as_str(), INK)?;
        }
        Ok(())
    })])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_mean_and_ratio() {
        assert_eq!(point(&[1.0, 4.0, 4.0]), (3.0, 4.0));
        assert_eq!(point(&[0.0]), (0.0, 1.0));
    }

    #[test]
    fn kinds_are_told_apart() {
        assert_eq!(kind(&"mm0.txt.mlp.fc2".into()).0, "text, MLP");
        assert_eq!(kind(&"mm0.img.attn.q_proj".into()).0, "image, attention");
        assert_eq!(kind(&"head".into()).0, "others");
    }
}
