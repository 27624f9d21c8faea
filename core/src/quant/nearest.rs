//! Rounding to the nearest point of a grid.

use mlx_rs::Array;
use rayon::prelude::*;

use super::{Clipping, Grid, GridParams, to_matrix};
use crate::{Error, Result, RoundedLayer};

/// Rounds a weight `[out_features, in_features]` to the nearest point of its grid.
///
/// Fails with [`Error::NotFinite`] on NaN or infinity, [`Error::Shape`] unless the weight has two axes, and
/// [`Error::Settings`] if the grid does not fit it.
///
/// ```
/// use taq_core::mlx_rs::Array;
/// use taq_core::quant::{Clipping, Granularity, Grid, nearest};
///
/// let weight = Array::from_slice(&[0.7_f32, -0.16, 0.34, 0.05], &[2, 2]);
/// let rounded = nearest(&weight, &Grid::new(4, Granularity::Channel, true)?, Clipping::Absmax)?;
/// assert_eq!(rounded.weight_int, [7, -2, 7, 1]);
/// assert_eq!(rounded.scale, [0.7 / 7.0, 0.34 / 7.0]);
/// # Ok::<(), taq_core::Error>(())
/// ```
pub fn nearest(weight: &Array, grid: &Grid, clipping: Clipping) -> Result<RoundedLayer> {
    let (values, shape) = to_matrix("weight", weight)?;
    let params = GridParams::fit(&values, shape, grid, clipping)?;
    round_nearest(&values, shape, grid, params)
}

/// Like [`nearest`], with step sizes and zero points of one's own.
pub fn nearest_with(weight: &Array, grid: &Grid, params: GridParams) -> Result<RoundedLayer> {
    let (values, shape) = to_matrix("weight", weight)?;
    round_nearest(&values, shape, grid, params)
}

/// Like [`nearest_with`], of finite values in host memory, row-major of shape `[out_features, in_features]`.
pub fn round_nearest(
    weight: &[f32],
    shape: [usize; 2],
    grid: &Grid,
    params: GridParams,
) -> Result<RoundedLayer> {
    let layout = grid.layout(shape)?;
    for (what, found) in [("step sizes", params.scale.len()), ("zero points", params.zero_point.len())] {
        if found != layout.groups {
            return Err(Error::Shape {
                what: format!("{what} of a {shape:?} weight with granularity {:?}", grid.granularity),
                expected: format!("[{}]", layout.groups),
                found: vec![found as i32],
            });
        }
    }
    let mut weight_int = vec![0_i8; weight.len()];
    // Parts, so that a per-tensor grid is shared out as well; no part crosses the border of a group.
    weight_int
        .par_chunks_mut(layout.group_len)
        .zip(weight.par_chunks(layout.group_len))
        .enumerate()
        .for_each(|(group, (out, values))| {
            let (scale, zero) = (params.scale[group], params.zero_point[group]);
            out.par_chunks_mut(PART).zip(values.par_chunks(PART)).for_each(|(out, values)| {
                out.iter_mut().zip(values).for_each(|(q, &w)| *q = grid.integer(w, scale, zero));
            });
        });
    Ok(RoundedLayer {
        grid: *grid,
        shape,
        weight_int,
        scale: params.scale,
        zero_point: params.zero_point,
        learned: None,
    })
}

const PART: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Granularity;

    /// As one would write it in numpy, in f32 with its `rint`.
    fn naive(w: &[f32], shape: [usize; 2], grid: &Grid, params: &GridParams) -> Vec<i8> {
        let mut out = Vec::new();
        for row in 0..shape[0] {
            for column in 0..shape[1] {
                let group = match grid.granularity {
                    Granularity::Tensor => 0,
                    Granularity::Channel => row,
                    Granularity::Group(size) => row * (shape[1] / size) + column / size,
                };
                let q = w[row * shape[1] + column] / params.scale[group] + params.zero_point[group];
                let q = q.round_ties_even();
                out.push(q.clamp(f32::from(grid.qmin()), f32::from(grid.qmax())) as i8);
            }
        }
        out
    }

    #[test]
    fn agrees_with_a_naive_loop() {
        let mut rng = rand_mt::Mt::new(11);
        let w: Vec<f32> = (0..48 * 32).map(|_| (f64::from(rng.next_u32()) / 2e9 - 1.0) as f32).collect();
        let shape = [48, 32];
        for bits in 2..=8 {
            for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Group(8)] {
                for symmetric in [true, false] {
                    for clipping in [Clipping::Absmax, Clipping::Mse] {
                        let grid = Grid::new(bits, granularity, symmetric).unwrap();
                        let params = GridParams::fit(&w, shape, &grid, clipping).unwrap();
                        let rounded = round_nearest(&w, shape, &grid, params.clone()).unwrap();
                        assert_eq!(rounded.weight_int, naive(&w, shape, &grid, &params), "{grid:?}");
                        // Without clipping no weight is further than half a step away.
                        if clipping == Clipping::Absmax {
                            let group_len = grid.layout(shape).unwrap().group_len;
                            for (i, (v, w)) in rounded.values().iter().zip(&w).enumerate() {
                                let step = rounded.scale[i / group_len];
                                assert!((v - w).abs() <= 0.5001 * step, "{grid:?} {i}: {w} became {v}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_ends_are_clipped() {
        let w = [0.5_f32, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5, 7.5, 100.0, -7.5, -8.5, -100.0];
        let grid = Grid::new(4, Granularity::Tensor, true).unwrap();
        let params = GridParams { scale: vec![1.0], zero_point: vec![0.0], groups_per_row: 1 };
        let rounded = round_nearest(&w, [1, 12], &grid, params).unwrap();
        assert_eq!(rounded.weight_int, [0, 2, 2, 0, -2, -2, 6, 7, 7, -8, -8, -8]);
    }

    #[test]
    fn what_is_on_the_grid_stays() {
        let grid = Grid::new(4, Granularity::Channel, true).unwrap();
        let w: Vec<f32> = (-7..=7).map(|i| i as f32 * 0.3).collect();
        let once = nearest(&Array::from_slice(&w, &[1, 15]), &grid, Clipping::Absmax).unwrap();
        assert_eq!(once.weight_int, (-7..=7).collect::<Vec<i8>>());
        let twice = nearest(&once.dequantize().unwrap(), &grid, Clipping::Absmax).unwrap();
        assert_eq!(once.weight_int, twice.weight_int);
    }

    #[test]
    fn bad_input_is_named() {
        let grid = Grid::new(4, Granularity::Channel, true).unwrap();
        let nan = Array::from_slice(&[1.0, f32::NAN], &[1, 2]);
        assert!(matches!(nearest(&nan, &grid, Clipping::Mse), Err(Error::NotFinite { .. })));
        let w = Array::from_slice(&[1.0_f32, 2.0], &[1, 2]);
        let params = GridParams { scale: vec![1.0, 1.0], zero_point: vec![0.0], groups_per_row: 1 };
        assert_eq!(
            nearest_with(&w, &grid, params).unwrap_err().to_string(),
            "step sizes of a [1, 2] weight with granularity Channel: expected shape [1], found [2]"
        );
    }
}
