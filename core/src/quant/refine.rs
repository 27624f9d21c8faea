//! Step size and zero point by turns with the integers: Lloyd's iteration on a uniform grid.
//!
//! With the integers fixed, the best step size and zero point are those of a linear regression of the weights on their
//! integers; with these fixed, the best integers are the nearest. Each turn lowers the squared error, so a few of them lead
//! from a good grid to the best one near it (Lloyd, *Least squares quantization in PCM*, 1982, with Max's uniform
//! levels, *Quantizing for minimum distortion*, 1960).

use super::grid::Grid;
use super::params::error;
use super::round_small;

/// Most turns.
const TURNS: usize = 20;

/// A turn that lowers the squared error by a smaller share than this is the last.
const SETTLED: f64 = 1e-4;

/// The grid after its turns, never with a larger squared error than the one it began with.
pub(super) fn refine(group: &[f32], grid: &Grid, start: (f32, f32)) -> (f32, f32) {
    let squared = |params| error(group, grid, params, 2.0, f64::INFINITY);
    let mut best = (squared(start), start);
    for _ in 0..TURNS {
        let Some(params) = Sums::of(group, grid, best.1).regression(grid.symmetric) else { break };
        let next = (squared(params), params);
        // Also where a sum has become infinite.
        if next.0.is_nan() || next.0 >= best.0 {
            break;
        }
        let settled = best.0 - next.0 < SETTLED * best.0;
        best = next;
        if settled {
            break;
        }
    }
    best.1
}

/// What a regression needs of a group and its integers.
#[derive(Default)]
struct Sums {
    count: f64,
    q: f64,
    qq: f64,
    w: f64,
    wq: f64,
}

impl Sums {
    fn of(group: &[f32], grid: &Grid, (scale, zero): (f32, f32)) -> Self {
        let (low, high) = (f32::from(grid.qmin()), f32::from(grid.qmax()));
        let mut all = Self { count: group.len() as f64, ..Self::default() };
        for part in group.chunks(256) {
            // Lanes, so that it becomes vector code.
            let mut lanes = [[0.0_f32; 8]; 4];
            for eight in part.chunks(8) {
                for (i, &w) in eight.iter().enumerate() {
                    let q = round_small((w / scale + zero).clamp(low, high));
                    lanes[0][i] += q;
                    lanes[1][i] += q * q;
                    lanes[2][i] += w;
                    lanes[3][i] += w * q;
                }
            }
            let [q, qq, w, wq] = lanes.map(|lane| lane.iter().map(|&x| f64::from(x)).sum::<f64>());
            all.q += q;
            all.qq += qq;
            all.w += w;
            all.wq += wq;
        }
        all
    }

    /// Step size and zero point; `None` where all integers are the same, or numbers leave f32's range.
    fn regression(&self, symmetric: bool) -> Option<(f32, f32)> {
        let Self { count, q, qq, w, wq } = self;
        let (scale, zero) = if symmetric {
            (wq / qq, 0.0)
        } else {
            let scale = (wq - w * q / count) / (qq - q * q / count);
            (scale, (q - w / scale) / count)
        };
        let (scale, zero) = (scale as f32, zero as f32);
        (scale.is_normal() && scale > 0.0 && zero.is_finite()).then_some((scale, zero))
    }
}

#[cfg(test)]
mod tests {
    use super::super::params::tests::random;
    use super::super::{Clipping, Granularity, GridParams};
    use super::*;

    /// Values of a normal distribution at equally likely places.
    fn normal(n: usize) -> Vec<f32> {
        // The inverse of the distribution function by bisection of erf's series.
        let phi = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for k in 1..200 {
                term *= -x * x / (2.0 * f64::from(k));
                sum += term / f64::from(2 * k + 1);
            }
            0.5 + sum / (2.0 * std::f64::consts::PI).sqrt()
        };
        (0..n)
            .map(|i| {
                let p = (i as f64 + 0.5) / n as f64;
                let (mut low, mut high) = (-5.0, 5.0);
                for _ in 0..50 {
                    let middle = 0.5 * (low + high);
                    if phi(middle) < p { low = middle } else { high = middle }
                }
                low as f32
            })
            .collect()
    }

    #[test]
    fn a_normal_weight_gets_max_s_uniform_grid() {
        // Max (1960), table II: spacing and mean squared error of 4, 8 and 16 equally spaced levels.
        let weight = normal(20_000);
        for (bits, spacing, squared) in [(2, 0.9957, 0.1188), (3, 0.5860, 0.03744), (4, 0.3352, 0.01154)] {
            let grid = Grid::new(bits, Granularity::Tensor, false).unwrap();
            let fitted = GridParams::fit(&weight, [1, weight.len()], &grid, Clipping::Mse).unwrap();
            let (scale, zero) = (fitted.scale[0], fitted.zero_point[0]);
            let found = error(&weight, &grid, (scale, zero), 2.0, f64::INFINITY) / weight.len() as f64;
            assert!((found / squared - 1.0).abs() < 0.01, "{bits} bits: {found}, expected {squared}");
            assert!((f64::from(scale) / spacing - 1.0).abs() < 0.03, "{bits} bits: {scale}, not {spacing}");
            // The levels lie on both sides of 0 alike.
            assert!((zero + 0.5).abs() < 0.05, "{bits} bits: {zero}");
        }
    }

    #[test]
    fn turns_never_raise_the_error_and_end_at_a_regression() {
        for seed in 0..20 {
            let group = random(seed, 200);
            for symmetric in [true, false] {
                let grid = Grid::new(3, Granularity::Tensor, symmetric).unwrap();
                let start = (0.5, if symmetric { 0.0 } else { 0.3 });
                let squared = |params| error(&group, &grid, params, 2.0, f64::INFINITY);
                let refined = refine(&group, &grid, start);
                assert!(squared(refined) < squared(start), "{seed} {symmetric}");
                // With the integers that it leads to, no other numbers are better: the residual is orthogonal to what
                // they multiply. Not quite, since the last turn changed some integers.
                let (scale, zero) = refined;
                let integer = |w: f32| f64::from(grid.integer(w, scale, zero)) - f64::from(zero);
                let fixed = |by: f64, off: f64| {
                    let off = |&w: &f32| f64::from(w) - (integer(w) - off) * f64::from(scale) * by;
                    group.iter().map(|w| off(w) * off(w)).sum::<f64>()
                };
                let steps = [(1.02, 0.0), (0.98, 0.0), (1.0, 0.05), (1.0, -0.05)];
                for (by, off) in steps.into_iter().filter(|s| !symmetric || s.1 == 0.0) {
                    assert!(fixed(by, off) > fixed(1.0, 0.0), "{seed} {symmetric} {by} {off}");
                }
            }
        }
    }

    #[test]
    fn what_is_on_a_grid_stays_and_degenerate_groups_pass() {
        let grid = Grid::new(4, Granularity::Tensor, false).unwrap();
        let on_grid: Vec<f32> = (-8..8).map(|q| (q as f32 - 2.5) * 0.25).collect();
        assert_eq!(refine(&on_grid, &grid, (0.25, 2.5)), (0.25, 2.5));
        for group in [vec![0.0; 9], vec![3.0; 9], vec![1e38; 9], vec![1e-44, 2e-44, 0.0]] {
            assert_eq!(refine(&group, &grid, (1.0, 0.0)), (1.0, 0.0), "{group:?}");
        }
    }
}
