//! The integers of rounded weights.

use taq_core::artifacts::{Npz, RunFolder};
use taq_core::pipeline::BlockMetrics;
use taq_core::quant::Grid;
use taq_core::{Error, LayerId, Result};

use super::layers;

/// How often each integer occurs in one layer's weight.
pub(crate) struct Integers {
    pub(crate) layer: LayerId,
    pub(crate) bits: u8,
    /// The grid's first integer.
    pub(crate) lowest: i8,
    /// Share of each integer of the grid, from the lowest.
    pub(crate) shares: Vec<f64>,
}

/// The layers of a block, in order.
///
/// # Errors
/// [`Error::Malformed`] where an integer is outside its grid, and what reading arrays gives.
pub(crate) fn of_block(run: &RunFolder, block: &BlockMetrics) -> Result<Vec<Integers>> {
    let path = run.block_weights(&block.block_name);
    let npz = Npz::open(&path)?;
    let mut ids: Vec<LayerId> = block.layers.keys().cloned().collect();
    layers::sort(&mut ids);
    let integers = |layer: LayerId| -> Result<Integers> {
        let grid = &block.layers[&layer];
        let name = format!("{}__weight_int", layer.array_prefix());
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
        Ok(Integers { layer, bits: grid.bits, lowest: grid.qmin(), shares })
    };
    ids.into_iter().map(integers).collect()
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
