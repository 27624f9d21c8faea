//! Step sizes and zero points: a grid that has met a weight.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grid::{Grid, Layout};
use super::refine::refine;
use super::round_small;
use crate::Result;

/// Clipping ranges that [`GridParams::fit_mse`] tries for each group.
pub const MSE_CANDIDATES: usize = 100;

/// Where a group's outermost grid points go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clipping {
    /// To the outermost weights: nothing is clipped.
    Absmax,
    /// To where the squared error of rounding to nearest is smallest.
    #[default]
    Mse,
}

/// Step size and zero point of each group of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct GridParams {
    /// One step size per group, row-major `[out_features, groups_per_row]`; a single one on a per-tensor grid.
    /// Finite and greater than 0.
    pub scale: Vec<f32>,
    /// One zero point per group, finite; all 0 on a symmetric grid.
    pub zero_point: Vec<f32>,
    /// Groups in a row.
    pub groups_per_row: usize,
}

impl GridParams {
    /// Fits a grid to a finite weight, row-major of shape `[out_features, in_features]`.
    pub fn fit(weight: &[f32], shape: [usize; 2], grid: &Grid, clipping: Clipping) -> Result<Self> {
        match clipping {
            Clipping::Absmax => Self::fit_absmax(weight, shape, grid),
            Clipping::Mse => {
                let mut fitted = Self::fit_mse(weight, shape, grid, 2.0)?;
                fitted.refine(weight, grid);
                Ok(fitted)
            }
        }
    }

    /// Lowers the squared error further, from here to the best grid nearby.
    fn refine(&mut self, weight: &[f32], grid: &Grid) {
        let group_len = weight.len() / self.scale.len().max(1);
        let params = self.scale.par_iter_mut().zip(&mut self.zero_point);
        params.zip(weight.par_chunks(group_len.max(1))).for_each(|((scale, zero), group)| {
            (*scale, *zero) = refine(group, grid, (*scale, *zero));
        });
    }

    /// The grid on which no weight is clipped: by absmax if symmetric, by minimum and maximum (0 included) if
    /// not. A group of zeros gets the step size 1.
    pub fn fit_absmax(weight: &[f32], shape: [usize; 2], grid: &Grid) -> Result<Self> {
        let layout = grid.layout(shape)?;
        let fitted =
            weight.par_chunks(layout.group_len).map(|group| affine(grid, range(group), 1.0)).collect();
        Ok(Self::collect(layout, fitted))
    }

    /// The grid with the smallest Σ|w − ŵ|^p among [`MSE_CANDIDATES`] that shrink [`Self::fit_absmax`]'s range
    /// to 1 %, 2 %, … 100 %, for each group on its own; of equals, the widest one. `p` = 2 is the squared error;
    /// BRECQ's and QDrop's observers use 2.4 (yhhhli/BRECQ `quant/quant_layer.py`). For asymmetric grids both
    /// ends shrink by the same ratio.
    pub fn fit_mse(weight: &[f32], shape: [usize; 2], grid: &Grid, p: f32) -> Result<Self> {
        let layout = grid.layout(shape)?;
        let ratio = |step: usize| step as f32 / MSE_CANDIDATES as f32;
        let fitted = if layout.groups == 1 {
            let range = range(weight);
            let errors: Vec<f64> = (1..=MSE_CANDIDATES)
                .into_par_iter()
                .map(|step| error(weight, grid, affine(grid, range, ratio(step)), p, f64::INFINITY))
                .collect();
            let best =
                (1..=MSE_CANDIDATES).rev().reduce(|a, b| if errors[b - 1] < errors[a - 1] { b } else { a });
            vec![affine(grid, range, ratio(best.unwrap_or(MSE_CANDIDATES)))]
        } else {
            weight
                .par_chunks(layout.group_len)
                .map(|group| {
                    let range = range(group);
                    let mut best = (f64::INFINITY, affine(grid, range, 1.0));
                    for step in (1..=MSE_CANDIDATES).rev() {
                        let candidate = affine(grid, range, ratio(step));
                        let error = error(group, grid, candidate, p, best.0);
                        if error < best.0 {
                            best = (error, candidate);
                        }
                    }
                    best.1
                })
                .collect()
        };
        Ok(Self::collect(layout, fitted))
    }

    fn collect(layout: Layout, fitted: Vec<(f32, f32)>) -> Self {
        let (scale, zero_point) = fitted.into_iter().unzip();
        Self { scale, zero_point, groups_per_row: layout.groups_per_row }
    }
}

/// Smallest and largest value, with 0 between them.
fn range(group: &[f32]) -> (f32, f32) {
    group.iter().fold((0.0, 0.0), |(low, high), &w| (low.min(w), high.max(w)))
}

/// Step size and zero point for a range that holds 0, shrunk by `ratio`.
fn affine(grid: &Grid, (low, high): (f32, f32), ratio: f32) -> (f32, f32) {
    let (qmin, qmax) = (f64::from(grid.qmin()), f64::from(grid.qmax()));
    let (low, high) = (f64::from(low * ratio), f64::from(high * ratio));
    if grid.symmetric {
        (step_size(high.max(-low) / qmax), 0.0)
    } else {
        let scale = step_size((high - low) / (qmax - qmin));
        (scale, (qmin - low / f64::from(scale)) as f32)
    }
}

/// In f32; 1 for a group of zeros, and never so small that a division by it could overflow.
fn step_size(scale: f64) -> f32 {
    if scale == 0.0 { 1.0 } else { (scale as f32).max(f32::MIN_POSITIVE) }
}

/// Σ|w − ŵ|^p, or infinity as soon as it is clear that it exceeds `limit`.
pub(super) fn error(group: &[f32], grid: &Grid, (scale, zero): (f32, f32), p: f32, limit: f64) -> f64 {
    let (low, high) = (f32::from(grid.qmin()), f32::from(grid.qmax()));
    let off = |w: f32| w - (round_small((w / scale + zero).clamp(low, high)) - zero) * scale;
    let mut total = 0.0;
    for part in group.chunks(256) {
        let mut lanes = [0.0_f32; 8];
        if p == 2.0 {
            let mut rows = part.chunks_exact(8);
            for eight in &mut rows {
                for (lane, &w) in lanes.iter_mut().zip(eight) {
                    *lane += off(w) * off(w);
                }
            }
            for (lane, &w) in lanes.iter_mut().zip(rows.remainder()) {
                *lane += off(w) * off(w);
            }
        } else {
            lanes[0] = part.iter().map(|&w| off(w).abs().powf(p)).sum();
        }
        total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
        if total > limit {
            return f64::INFINITY;
        }
    }
    total
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::{Granularity, round_nearest};

    pub(in crate::quant) fn random(seed: u32, n: usize) -> Vec<f32> {
        let mut rng = rand_mt::Mt::new(seed);
        let mut uniform = || f64::from(rng.next_u32()) / 4_294_967_296.0;
        (0..n).map(|_| ((0..6).map(|_| uniform()).sum::<f64>() - 3.0) as f32).collect()
    }

    const GRANULARITIES: [Granularity; 3] =
        [Granularity::Tensor, Granularity::Channel, Granularity::Group(4)];

    #[test]
    fn symmetric_absmax_by_hand() {
        // numpy: np.abs(w).max(1) / 7
        let w = [1.0_f32, -3.5, 0.5, 2.0, 0.0, 0.0, 0.0, 0.0, 7.0, 1.0, -14.0, 3.0];
        let fit = |g| GridParams::fit_absmax(&w, [3, 4], &Grid::new(4, g, true).unwrap()).unwrap();
        assert_eq!(fit(Granularity::Channel).scale, [0.5, 1.0, 2.0]);
        assert_eq!(fit(Granularity::Tensor).scale, [2.0]);
        assert_eq!(fit(Granularity::Group(2)).scale, [0.5, 2.0 / 7.0, 1.0, 1.0, 1.0, 2.0]);
        assert_eq!(fit(Granularity::Group(2)).groups_per_row, 2);
        assert_eq!(fit(Granularity::Channel).zero_point, [0.0; 3]);
    }

    #[test]
    fn asymmetric_minmax_by_hand() {
        // lo = -1, hi = 2: s = 3/15, z = -8 + 1/0.2 = -3; then all positive, all negative, constant.
        let w = [-1.0_f32, 2.0, 3.0, 6.0, -1.5, -0.5, 0.25, 0.25];
        let p =
            GridParams::fit_absmax(&w, [4, 2], &Grid::new(4, Granularity::Channel, false).unwrap()).unwrap();
        assert_eq!(p.scale, [0.2, 0.4, 0.1, 0.25 / 15.0]);
        assert_eq!(p.zero_point, [-3.0, -8.0, 7.0, -8.0]);
    }

    #[test]
    fn degenerate_groups_have_usable_steps() {
        let rows = [
            [0.0_f32; 4],
            [0.7; 4],
            [-0.7; 4],
            [1e-45; 4],
            [f32::MIN_POSITIVE; 4],
            [1e38; 4],
            [-1e38, 1e38, 0.0, 1.0],
        ];
        let w = rows.concat();
        for bits in 2..=8 {
            for granularity in GRANULARITIES {
                for symmetric in [true, false] {
                    for clipping in [Clipping::Absmax, Clipping::Mse] {
                        let grid = Grid::new(bits, granularity, symmetric).unwrap();
                        let p = GridParams::fit(&w, [7, 4], &grid, clipping).unwrap();
                        assert!(p.scale.iter().all(|s| s.is_finite() && *s > 0.0), "{grid:?} {:?}", p.scale);
                        let rounded = round_nearest(&w, [7, 4], &grid, p).unwrap();
                        assert!(rounded.values().iter().all(|v| v.is_finite()), "{grid:?} {clipping:?}");
                        if granularity == Granularity::Channel && clipping == Clipping::Absmax {
                            let values = rounded.values();
                            assert_eq!(values[..4], [0.0; 4]);
                            assert!(values[4..8].iter().all(|v| (v - 0.7).abs() < 1e-6), "{values:?}");
                            assert!(values[8..12].iter().all(|v| (v + 0.7).abs() < 1e-6), "{values:?}");
                        }
                    }
                }
            }
        }
    }

    /// Plainly, in f64, one group at a time.
    fn naive_mse(group: &[f32], grid: &Grid, p: f64) -> (f64, f64) {
        let low = group.iter().fold(0.0_f64, |a, &b| a.min(f64::from(b)));
        let high = group.iter().fold(0.0_f64, |a, &b| a.max(f64::from(b)));
        let (qmin, qmax) = (f64::from(grid.qmin()), f64::from(grid.qmax()));
        let mut best = (f64::INFINITY, 0.0);
        for step in 1..=100 {
            let ratio = f64::from(step) / 100.0;
            let (scale, zero) = if grid.symmetric {
                (high.max(-low) * ratio / qmax, 0.0)
            } else {
                let s = (high - low) * ratio / (qmax - qmin);
                (s, qmin - low * ratio / s)
            };
            let off = |w: f32| {
                let q = (f64::from(w) / scale + zero).round_ties_even().clamp(qmin, qmax);
                (f64::from(w) - (q - zero) * scale).abs().powf(p)
            };
            let error: f64 = group.iter().map(|&w| off(w)).sum();
            if error < best.0 {
                best = (error, scale);
            }
        }
        best
    }

    #[test]
    fn the_mse_search_finds_what_a_naive_search_finds() {
        let mut w = random(7, 12 * 40);
        w[5] = 9.0; // an outlier: clipping pays
        for (bits, granularity) in [
            (2, Granularity::Channel),
            (4, Granularity::Channel),
            (4, Granularity::Tensor),
            (3, Granularity::Group(8)),
            (8, Granularity::Channel),
        ] {
            for symmetric in [true, false] {
                for p in [2.0, 2.4] {
                    let grid = Grid::new(bits, granularity, symmetric).unwrap();
                    let layout = grid.layout([12, 40]).unwrap();
                    let fitted = GridParams::fit_mse(&w, [12, 40], &grid, p).unwrap();
                    for (i, group) in w.chunks(layout.group_len).enumerate() {
                        let (best, scale) = naive_mse(group, &grid, f64::from(p));
                        let ours =
                            error(group, &grid, (fitted.scale[i], fitted.zero_point[i]), p, f64::INFINITY);
                        assert!(ours <= best * (1.0 + 1e-4), "{grid:?} p={p} group {i}: {ours} > {best}");
                        // Another scale is right only where the errors tie.
                        let same = (f64::from(fitted.scale[i]) - scale).abs() < 1e-6 * scale;
                        assert!(same || (ours - best).abs() < 1e-4 * best, "{grid:?} p={p} group {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn clipping_never_raises_the_squared_error_and_helps_with_outliers() {
        let mut w = random(3, 4096);
        w[17] = 20.0;
        let grid = Grid::new(4, Granularity::Tensor, true).unwrap();
        let squared = |clipping| {
            let p = GridParams::fit(&w, [64, 64], &grid, clipping).unwrap();
            error(&w, &grid, (p.scale[0], 0.0), 2.0, f64::INFINITY)
        };
        assert!(squared(Clipping::Mse) < 0.5 * squared(Clipping::Absmax));
    }
}
