//! `channel_ranges_<layer>`: smallest and largest value of every channel at a few steps.

use taq_core::{LayerId, Result};

use super::Sheet;
use crate::plot::Choice;
use crate::plot::axis::Axis;
use crate::plot::panel::{Key, Mark, Panel, header};
use crate::plot::style::{BLUE, INK, RED};
use crate::results::layers::file_part;
use crate::results::sources::Sources;
use crate::results::statistics::{Channels, Statistics, spread};

/// Steps in one figure.
const STEPS: usize = 3;

pub(super) fn sheets(sources: &Sources, choice: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let chosen: Vec<usize> =
        spread(choice.snapshots.len(), STEPS).into_iter().map(|i| choice.snapshots[i]).collect();
    choice.layers.iter().map(|layer| sheet(statistics, layer, &chosen)).collect()
}

fn sheet(statistics: &Statistics, layer: &LayerId, chosen: &[usize]) -> Result<Sheet> {
    let panel = |&at: &usize| -> Result<(String, Channels, Vec<bool>)> {
        let channels = statistics.channels(at, layer)?;
        let far = channels.outliers();
        let step = &statistics.steps[at];
        let count = far.iter().filter(|far| **far).count();
        let title =
            format!("Step {}, σ = {:.2}: {count} of {} are outliers", step.step, step.sigma, far.len());
        Ok((title, channels, far))
    };
    let panels = chosen.iter().map(panel).collect::<Result<Vec<_>>>()?;
    let title = format!("Range of every channel of the input of {layer}");
    let size = (2000, 220 + 480 * panels.len() as u32);
    Ok(Sheet::new(format!("channel_ranges_{}", file_part(layer.as_str())), size, move |area| {
        let shifted = panels.iter().any(|(_, channels, _)| channels.shift.is_some());
        let mut keys = vec![
            Key::new("from smallest to largest value", BLUE, Mark::Block),
            Key::new("the same, over 2.5 times the median range", RED, Mark::Block),
        ];
        if shifted {
            keys.push(Key::new("shift", INK, Mark::Dot));
        }
        let about = "Averaged over batches, as the observer keeps them.";
        let area = header(area, &title, about, &keys)?;
        let all = || panels.iter().flat_map(|(_, c, _)| c.low.iter().chain(&c.high)).map(|&v| f64::from(v));
        let (low, high) = (all().fold(0.0, f64::min), all().fold(0.0, f64::max));
        for ((title, channels, far), place) in panels.iter().zip(area.split_evenly((panels.len(), 1))) {
            let count = channels.low.len();
            let x = Axis { mesh: false, ..Axis::exact("channel", 0.0, count as f64) };
            let panel = Panel::new(&place, title, x, Axis::linear("value", low, high))?;
            for (channel, far) in far.iter().enumerate() {
                let (x, colour) = (channel as f64, if *far { RED } else { BLUE });
                let (low, high) = (f64::from(channels.low[channel]), f64::from(channels.high[channel]));
                panel.block((x + 0.1, low), (x + 0.9, high), colour)?;
            }
            for (channel, &shift) in channels.shift.iter().flatten().enumerate() {
                panel.dots([(channel as f64 + 0.5, f64::from(shift))], INK, 3)?;
            }
        }
        Ok(())
    }))
}
