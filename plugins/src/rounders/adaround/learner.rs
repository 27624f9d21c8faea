//! The rounding variables of one layer and their optimiser.

use rayon::prelude::*;
use taq_core::quant::{Clipping, Grid, GridParams, round_nearest, to_matrix};
use taq_core::{LayerJob, Result, RoundedLayer};

use super::math::{at_least, at_most};
use super::soft::{inverse, rectified_sigmoid, regulariser_slope};

/// Weights that a thread takes at a time, at least.
const SHARE: usize = 8192;

/// Adam's decay rates and its guard against division by zero (Kingma and Ba, arXiv 1412.6980; torch's defaults).
const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// What an iteration applies to all layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// From 1.
    pub(super) iteration: usize,
    /// Learning rate.
    pub(super) lr: f32,
    /// Regulariser's weight, 0 during the warm-up.
    pub(super) lambda: f32,
    /// Regulariser's exponent.
    pub(super) beta: f32,
}

/// One layer being learned: Ŵ = s · (clamp(⌊W/s⌋ + z + h(V), qmin, qmax) − z).
pub(super) struct Learner {
    grid: Grid,
    shape: [usize; 2],
    params: GridParams,
    group_len: usize,
    nearest: RoundedLayer,
    /// ⌊W/s⌋ + z. Where it is below qmin or not below qmax, both neighbours are clamped to the same point, and
    /// there is nothing to learn.
    base: Vec<i16>,
    v: Vec<f32>,
    /// Adam's mean of gradients and of their squares.
    first: Vec<f32>,
    second: Vec<f32>,
    /// One over the typical size of the loss' gradient with respect to h.
    gain: f32,
    soft: Vec<f32>,
}

impl Learner {
    /// Starts where the soft weights equal the weights (except where the grid clips them).
    pub(super) fn new(layer: &LayerJob, clipping: Clipping) -> Result<Self> {
        let grid = layer.grid;
        grid.validate(&layer.spec)?;
        let (weight, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
        let params = GridParams::fit(&weight, shape, &grid, clipping)?;
        let nearest = round_nearest(&weight, shape, &grid, params.clone())?;
        let group_len = grid.layout(shape)?.group_len;
        let (low, high) = (f32::from(grid.qmin()) - 1.0, f32::from(grid.qmax()));
        let (base, v) = weight
            .iter()
            .enumerate()
            .map(|(i, w)| {
                let in_steps = w / params.scale[i / group_len];
                let zero = f32::from(params.zero_point[i / group_len]);
                let base = (in_steps.floor() + zero).clamp(low, high);
                (base as i16, inverse((in_steps - in_steps.floor()).clamp(0.0, 1.0)))
            })
            .unzip();
        let (first, second) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        let mut learner =
            Self { grid, shape, params, group_len, nearest, base, v, first, second, gain: 1.0, soft: weight };
        learner.refresh();
        Ok(learner)
    }

    /// `[out_features, in_features]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The weights as they are with the present V, row-major.
    pub(super) fn soft(&self) -> &[f32] {
        &self.soft
    }

    /// The same weight rounded to nearest on the same grid.
    pub(super) fn nearest(&self) -> &RoundedLayer {
        &self.nearest
    }

    /// Takes the size of the loss' gradient from `gradient` (with respect to the weights): its root mean square
    /// per step of the grid. Returns false if the gradient is not finite.
    pub(super) fn calibrate(&mut self, gradient: &[f32]) -> bool {
        let scale = |i: usize| self.params.scale[i / self.group_len];
        let squares: f64 = gradient.iter().enumerate().map(|(i, g)| f64::from(g * scale(i)).powi(2)).sum();
        let size = (squares / gradient.len() as f64).sqrt();
        // A layer that the loss does not feel keeps its nearest neighbours: the regulariser alone decides.
        let gain = (1.0 / size) as f32;
        self.gain = if gain.is_finite() { gain } else { 1.0 };
        size.is_finite()
    }

    /// One step of Adam on V, with the loss' gradient with respect to the soft weights; then the soft weights of
    /// the new V. Returns false if the gradient is not finite.
    pub(super) fn step(&mut self, gradient: &[f32], step: &Step) -> bool {
        let columns = self.shape[1];
        let run = self.group_len.min(columns);
        let share = columns * SHARE.div_ceil(columns);
        let grid = PassGrid::new(&self.grid);
        let adam = Adam::new(step);
        self.v
            .par_chunks_mut(share)
            .zip(self.first.par_chunks_mut(share))
            .zip(self.second.par_chunks_mut(share))
            .zip(self.soft.par_chunks_mut(share))
            .zip(self.base.par_chunks(share))
            .zip(gradient.par_chunks(share))
            .enumerate()
            .map(|(part, (((((v, first), second), soft), base), gradient))| {
                let mut finite = true;
                let moments = first.chunks_mut(run).zip(second.chunks_mut(run));
                let runs = v.chunks_mut(run).zip(moments).zip(soft.chunks_mut(run));
                let runs = runs.zip(base.chunks(run)).zip(gradient.chunks(run)).enumerate();
                for (i, ((((v, (first, second)), soft), base), gradient)) in runs {
                    let group = (part * share + i * run) / self.group_len;
                    let (scale, zero) = (self.params.scale[group], f32::from(self.params.zero_point[group]));
                    let pass = Pass { grid, adam, scale, zero, gain: self.gain * scale, step: *step };
                    finite &= if step.lambda == 0.0 {
                        sweep::<false>(&pass, v, first, second, soft, base, gradient)
                    } else {
                        sweep::<true>(&pass, v, first, second, soft, base, gradient)
                    };
                }
                finite
            })
            .reduce(|| true, |a, b| a && b)
    }

    /// Soft weights of the present V.
    fn refresh(&mut self) {
        let grid = PassGrid::new(&self.grid);
        self.soft.iter_mut().zip(&self.base).zip(&self.v).enumerate().for_each(|(i, ((soft, &base), &v))| {
            let group = i / self.group_len;
            let (scale, zero) = (self.params.scale[group], f32::from(self.params.zero_point[group]));
            *soft = grid.weight(f32::from(base), rectified_sigmoid(v).0, scale, zero);
        });
    }

    /// Weights that are up or down to within 1 %, and weights that have a choice.
    pub(super) fn decided(&self) -> (usize, usize) {
        let grid = PassGrid::new(&self.grid);
        let count = |(&base, &v): (&i16, &f32)| {
            let free = usize::from(grid.free(f32::from(base)));
            let h = rectified_sigmoid(v).0;
            (free * usize::from(!(0.01..=0.99).contains(&h)), free)
        };
        let both = self.base.par_iter().zip(&self.v).map(count);
        both.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// The integers: up where V ≥ 0.
    pub(super) fn harden(&self) -> RoundedLayer {
        let (low, high) = (i16::from(self.grid.qmin()), i16::from(self.grid.qmax()));
        let hard = |(&base, &v): (&i16, &f32)| (base + i16::from(v >= 0.0)).clamp(low, high) as i8;
        RoundedLayer {
            grid: self.grid,
            shape: self.shape,
            weight_int: self.base.iter().zip(&self.v).map(hard).collect(),
            scale: self.params.scale.clone(),
            zero_point: self.params.zero_point.clone(),
        }
    }
}

/// A grid's range in floating point.
#[derive(Debug, Clone, Copy)]
struct PassGrid {
    low: f32,
    high: f32,
}

impl PassGrid {
    fn new(grid: &Grid) -> Self {
        Self { low: f32::from(grid.qmin()), high: f32::from(grid.qmax()) }
    }

    #[inline(always)]
    fn free(self, base: f32) -> bool {
        (base >= self.low) & (base < self.high)
    }

    #[inline(always)]
    fn weight(self, base: f32, h: f32, scale: f32, zero: f32) -> f32 {
        (at_most(at_least(base + h, self.low), self.high) - zero) * scale
    }
}

/// The constants of a step of Adam, with the corrections for moments that started at 0.
#[derive(Debug, Clone, Copy)]
struct Adam {
    rate: f32,
    root: f32,
}

impl Adam {
    fn new(step: &Step) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step.iteration as f64);
        Self {
            rate: (f64::from(step.lr) / correction(BETA_1)) as f32,
            root: (1.0 / correction(BETA_2).sqrt()) as f32,
        }
    }

    #[inline(always)]
    fn update(self, v: f32, first: &mut f32, second: &mut f32, gradient: f32) -> f32 {
        *first = BETA_1 * *first + (1.0 - BETA_1) * gradient;
        *second = BETA_2 * *second + (1.0 - BETA_2) * gradient * gradient;
        v - self.rate * *first / (second.sqrt() * self.root + EPSILON)
    }
}

/// One pass over a run of weights that share a step size.
#[derive(Debug, Clone, Copy)]
struct Pass {
    grid: PassGrid,
    adam: Adam,
    scale: f32,
    zero: f32,
    gain: f32,
    step: Step,
}

/// The pass: one step of Adam on V and the soft weights of the new V.
///
/// Compiled for several instruction sets, of which the best is taken at run time. None has fused operations, so
/// that the result is the same everywhere. Returns false if the gradient is not finite.
#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn sweep<const REGULARISED: bool>(
    pass: &Pass,
    v: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    soft: &mut [f32],
    base: &[i16],
    gradient: &[f32],
) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let Pass { grid, adam, scale, zero, gain, step: Step { lambda, beta, .. } } = *pass;
    let mut broken = 0_u32;
    let all = v.iter_mut().zip(first).zip(second).zip(soft).zip(base).zip(gradient);
    for (((((v, first), second), soft), &base), &gradient) in all {
        broken |= u32::from(gradient.to_bits() & EXPONENT == EXPONENT);
        let base = f32::from(base);
        let (h, slope) = rectified_sigmoid(*v);
        let mut towards = gradient * gain;
        if REGULARISED {
            towards += lambda * regulariser_slope(h, beta);
        }
        let slope = if grid.free(base) { slope } else { 0.0 };
        *v = adam.update(*v, first, second, towards * slope);
        *soft = grid.weight(base, rectified_sigmoid(*v).0, scale, zero);
    }
    broken == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounders::adaround::testing::Planted;
    use taq_core::quant::Granularity;

    fn learner(grid: Grid, clipping: Clipping) -> (Learner, Vec<f32>) {
        let planted = Planted::new(3, 32, 24, 4);
        (Learner::new(&planted.layer(grid), clipping).unwrap(), planted.weight().to_vec())
    }

    fn grids() -> Vec<Grid> {
        let mut all = Vec::new();
        for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Group(8)] {
            for (bits, symmetric) in [(2, true), (4, true), (4, false), (8, false)] {
                all.push(Grid::new(bits, granularity, symmetric).unwrap());
            }
        }
        all
    }

    #[test]
    fn starts_at_the_weights() {
        for grid in grids() {
            let (learner, weight) = learner(grid, Clipping::Absmax);
            for (i, (soft, w)) in learner.soft().iter().zip(&weight).enumerate() {
                let step = learner.params.scale[i / learner.group_len];
                // On an asymmetric grid the zero point is rounded, so that an end may be clipped by half a step.
                let slack = if grid.symmetric || learner.grid_has_room(i) { 1e-4 } else { 0.5001 };
                assert!((soft - w).abs() <= slack * step, "{grid:?} {i}: {w} became {soft}");
            }
        }
    }

    impl Learner {
        fn grid_has_room(&self, i: usize) -> bool {
            PassGrid::new(&self.grid).free(f32::from(self.base[i]))
        }
    }

    #[test]
    fn hard_weights_are_neighbours_and_the_start_is_nearest() {
        for grid in grids() {
            for clipping in [Clipping::Absmax, Clipping::Mse] {
                let (learner, _) = learner(grid, clipping);
                assert_eq!(&learner.harden(), learner.nearest(), "{grid:?} {clipping:?}");
            }
        }
    }

    /// What weight `i` contributes to the objective at V = `v` when the loss is Σ gᵢ ŵᵢ.
    fn objective(learner: &Learner, i: usize, v: f64, gradient: f32, step: &Step) -> f64 {
        let (low, high) = (f64::from(learner.grid.qmin()), f64::from(learner.grid.qmax()));
        let h = (1.2 / (1.0 + (-v).exp()) - 0.1).clamp(0.0, 1.0);
        let in_steps = (f64::from(learner.base[i]) + h).clamp(low, high);
        let scale = f64::from(learner.params.scale[i / learner.group_len]);
        let loss = f64::from(learner.gain) * f64::from(gradient) * in_steps * scale;
        let free = f64::from(u8::from(learner.grid_has_room(i)));
        loss + free * f64::from(step.lambda) * (1.0 - (2.0 * h - 1.0).abs().powf(f64::from(step.beta)))
    }

    #[test]
    fn steps_follow_textbook_adam_on_a_numerical_gradient() {
        for (grid, lambda) in grids().into_iter().flat_map(|g| [(g, 0.0), (g, 0.3)]) {
            let (mut ours, _) = learner(grid, Clipping::Mse);
            let mut rng = rand_mt::Mt::new(9);
            let n = ours.v.len();
            let (mut first, mut second) = (vec![0.0_f64; n], vec![0.0_f64; n]);
            let mut compared = 0;
            for iteration in 1..=4 {
                let gradient: Vec<f32> =
                    (0..n).map(|_| (f64::from(rng.next_u32()) / 2e9 - 1.0) as f32).collect();
                if iteration == 1 {
                    assert!(ours.calibrate(&gradient));
                }
                let step = Step { iteration, lr: 0.05, lambda, beta: 7.0 };
                let before = ours.v.clone();
                assert!(ours.step(&gradient, &step));
                for i in 0..n {
                    let v = f64::from(before[i]);
                    let at = |v| objective(&ours, i, v, gradient[i], &step);
                    let slope = (at(v + 1e-6) - at(v - 1e-6)) / 2e-6;
                    first[i] = 0.9 * first[i] + 0.1 * slope;
                    second[i] = 0.999 * second[i] + 0.001 * slope * slope;
                    let mean = first[i] / (1.0 - 0.9_f64.powi(iteration as i32));
                    let root = (second[i] / (1.0 - 0.999_f64.powi(iteration as i32))).sqrt();
                    let expected = v - 0.05 * mean / (root + 1e-8);
                    // A difference quotient across a kink of h, or of a slope near 0, says little.
                    if (v.abs() - 11.0_f64.ln()).abs() > 1e-4 && (slope == 0.0 || slope.abs() > 1e-4) {
                        compared += 1;
                        let found = f64::from(ours.v[i]);
                        assert!(
                            (expected - found).abs() < 1e-4,
                            "{grid:?} λ={lambda} {i}: {expected} {found}"
                        );
                    }
                }
                let mut again = Learner {
                    soft: vec![0.0; n],
                    v: ours.v.clone(),
                    base: ours.base.clone(),
                    ..learner(grid, Clipping::Mse).0
                };
                again.refresh();
                assert_eq!(again.soft, ours.soft);
            }
            assert!(compared > 3 * n, "only {compared} of {} steps were compared", 4 * n);
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_noticed() {
        let (mut learner, _) = learner(grids()[1], Clipping::Absmax);
        let mut gradient = vec![1.0; learner.v.len()];
        let step = Step { iteration: 1, lr: 0.01, lambda: 0.1, beta: 20.0 };
        assert!(learner.step(&gradient, &step));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            gradient[700] = bad;
            assert!(!learner.step(&gradient, &step));
            assert!(!learner.calibrate(&gradient));
        }
    }
}
