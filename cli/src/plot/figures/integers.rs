//! `integers_<block>`: how often each integer occurs in the weights of a block's layers.

use taq_core::artifacts::Npz;
use taq_core::pipeline::BlockMetrics;
use taq_core::quant::Grid;
use taq_core::{Error, LayerId, Result};

use super::Sheet;
use crate::plot::axis::Axis;
use crate::plot::layers::{self, file_part};
use crate::plot::panel::{Key, Mark, Panel, columns, grid, header};
use crate::plot::sources::{Choice, Sources};
use crate::plot::style::{BLUE, RED};

/// What one panel shows.
struct Shown {
    title: String,
    lowest: i8,
    /// Share of each integer of the grid, from the lowest.
    shares: Vec<f64>,
}

pub(super) fn sheets(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let config = sources.weights()?;
    config.block_metrics.iter().map(|block| sheet(sources, block)).collect()
}

/// Share of each integer of a grid; `Err` holds the first that is outside.
fn shares(grid: &Grid, integers: &[i8]) -> Result<Vec<f64>, i8> {
    let mut counts = vec![0u64; usize::from(u8::MAX) + 1];
    for &q in integers {
        if q < grid.qmin() || q > grid.qmax() {
            return Err(q);
        }
        counts[(i16::from(q) - i16::from(grid.qmin())) as usize] += 1;
    }
    counts.truncate((i16::from(grid.qmax()) - i16::from(grid.qmin())) as usize + 1);
    let total = integers.len().max(1) as f64;
    Ok(counts.into_iter().map(|n| n as f64 / total).collect())
}

fn sheet(sources: &Sources, block: &BlockMetrics) -> Result<Sheet> {
    let path = sources.run.block_weights(&block.block_name);
    let npz = Npz::open(&path)?;
    let mut ids: Vec<LayerId> = block.layers.keys().cloned().collect();
    layers::sort(&mut ids);
    let shown = |id: &LayerId| -> Result<Shown> {
        let grid = &block.layers[id];
        let name = format!("{}__weight_int", id.array_prefix());
        let integers = npz.read::<i8>(&name)?.data;
        let shares = shares(grid, &integers).map_err(|q| {
            let reason = format!(
                "array `{name}` holds {q}, expected {} to {} on a grid of {} bits",
                grid.qmin(),
                grid.qmax(),
                grid.bits
            );
            Error::malformed("block of weights", &path, reason)
        })?;
        let title = id.as_str().strip_prefix(block.block_name.as_str()).unwrap_or(id.as_str());
        let title = format!("{}, {} bits", title.trim_start_matches('.'), grid.bits);
        Ok(Shown { title, lowest: grid.qmin(), shares })
    };
    let panels = ids.iter().map(shown).collect::<Result<Vec<_>>>()?;
    let across = columns(panels.len());
    let size = (2400, 220 + 420 * panels.len().div_ceil(across).max(2) as u32);
    let title = format!("Integers of the weights of {}", block.block_name);
    Ok(Sheet::new(format!("integers_{}", file_part(block.block_name.as_str())), size, move |area| {
        let keys = [
            Key::new("share of the weights", BLUE, Mark::Block),
            Key::new("ends of the grid, where weights are clipped", RED, Mark::Block),
        ];
        let about =
            "Much at the ends means a grid too narrow; little anywhere but around 0 means one too wide.";
        let area = header(area, &title, about, &keys)?;
        let most = panels.iter().flat_map(|p| p.shares.iter().copied()).fold(0.0, f64::max);
        for (shown, place) in panels.iter().zip(grid(&area, panels.len(), across)) {
            let (low, count) = (f64::from(shown.lowest), shown.shares.len());
            let mut x = Axis::exact("integer", low - 0.5, low + count as f64 - 0.5);
            x.ticks.retain(|(at, _)| at.fract() == 0.0);
            x.mesh = false;
            let panel = Panel::new(&place, &shown.title, x, Axis::linear("share, %", 0.0, 100.0 * most))?;
            for (i, &share) in shown.shares.iter().enumerate() {
                let at = low + i as f64;
                let colour = if i == 0 || i + 1 == count { RED } else { BLUE };
                panel.block((at - 0.4, 0.0), (at + 0.4, 100.0 * share), colour)?;
            }
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use taq_core::quant::Granularity;

    use super::*;

    #[test]
    fn every_integer_of_the_grid_is_counted() {
        let two = Grid::new(2, Granularity::Channel, true).unwrap();
        assert_eq!(shares(&two, &[-2, -2, 1, 0, 0, 0, 0, -1]).unwrap(), [0.25, 0.125, 0.5, 0.125]);
        let eight = Grid::new(8, Granularity::Channel, true).unwrap();
        let shares8 = shares(&eight, &[-128, 127]).unwrap();
        assert_eq!((shares8.len(), shares8[0], shares8[255]), (256, 0.5, 0.5));
        assert_eq!(shares(&two, &[0, 2]), Err(2));
    }
}
