//! `snapshot_bars`: every layer at a few steps.

use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{SEQUENTIAL, shade};
use crate::results::layers::{Stream, stream};
use crate::results::sources::Sources;

/// Width in pixels: more where there are many layers.
fn width(layers: usize) -> u32 {
    (200 + 28 * layers as u32).clamp(2400, 4000)
}

pub(super) fn sheets(sources: &Sources, choice: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let rows = statistics.table(|s| f64::from(s.tensor_absmax));
    let of = |wanted: Option<Stream>| -> Vec<(LayerId, Vec<f64>)> {
        let layers = statistics.layers.iter().cloned().zip(rows.iter().cloned());
        layers.filter(|(id, _)| stream(id) == wanted).collect()
    };
    let groups = [
        ("Image stream", of(Some(Stream::Image))),
        ("Text stream", of(Some(Stream::Text))),
        ("Layers", of(None)),
    ];
    let groups: Vec<_> = groups.into_iter().filter(|(_, layers)| !layers.is_empty()).collect();
    let snapshots = choice.snapshots.clone();
    let count = snapshots.len();
    let keys: Vec<(String, usize)> = snapshots
        .iter()
        .map(|&at| (format!("step {}, σ = {:.2}", statistics.steps[at].step, statistics.steps[at].sigma), at))
        .collect();
    let height = 240 + 780 * groups.len() as u32;
    let width = width(groups.iter().map(|(_, layers)| layers.len()).max().unwrap_or(0));
    // A name below the axis is 28 pixels wide.
    let names = (width as usize - 200) / 28;
    Ok(vec![Sheet::new("snapshot_bars", (width, height), move |area| {
        let colour = |i: usize| shade(&SEQUENTIAL, 0.05 + 0.85 * i as f64 / (count.max(2) - 1) as f64);
        let keys: Vec<Key> =
            keys.iter().enumerate().map(|(i, (text, _))| Key::new(text, colour(i), Mark::Block)).collect();
        let about =
            "The largest magnitude that calibration saw at each of the chosen steps, from noise to image.";
        let area = header(area, "Largest magnitude of the layers' inputs at a few steps", about, &keys)?;
        for ((name, layers), place) in groups.iter().zip(area.split_evenly((groups.len(), 1))) {
            let ids: Vec<String> = layers.iter().map(|(id, _)| id.as_str().to_owned()).collect();
            let top = layers.iter().flat_map(|(_, row)| row.iter().copied()).fold(0.0, f64::max);
            let x = Axis::bands("", &ids, names).upright();
            let panel = Panel::new(&place, name, x, Axis::linear("largest magnitude", 0.0, top))?;
            for (at, (_, row)) in layers.iter().enumerate() {
                for (i, &step) in snapshots.iter().enumerate() {
                    let (from, to) = bar(at, i, count);
                    panel.block((from, 0.0), (to, row[step]), colour(i))?;
                }
            }
        }
        Ok(())
    })])
}

/// From where to where the bar `i` of `count` goes in a layer's band; a fifth of the band is left free.
fn bar(layer: usize, i: usize, count: usize) -> (f64, f64) {
    let width = 0.8 / count as f64;
    let left = layer as f64 + 0.1 + width * i as f64;
    (left, left + width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_layers_are_wider() {
        assert_eq!([1, 100, 1000].map(width), [2400, 3000, 4000]);
    }

    #[test]
    fn bars_stand_side_by_side_within_their_band() {
        assert_eq!(bar(3, 0, 4).0, 3.1);
        assert!((bar(3, 3, 4).1 - 3.9).abs() < 1e-12);
        assert!((bar(3, 0, 4).1 - bar(3, 1, 4).0).abs() < 1e-12);
    }
}
