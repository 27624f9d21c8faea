//! Learned rounding of one layer's weight: the variables V of AdaRound and their optimiser.

use rayon::prelude::*;
use taq_core::quant::{Grid, GridParams, round_nearest};
use taq_core::{Result, RoundedLayer};

use super::adam::Adam;
use super::math::{at_least, at_most};
use super::soft::{inverse, rectified_sigmoid, regulariser_slope};

/// Weights that a thread takes at a time, at least.
const SHARE: usize = 8192;

/// How far a weight starts on the way to an integer that someone else chose. Not all the way: there h is flat.
const LEAN: f32 = 0.75;

/// What an iteration applies to all layers.
#[derive(Debug, Clone, Copy)]
pub(in crate::rounders) struct Step {
    /// From 1.
    pub(in crate::rounders) iteration: usize,
    /// Learning rate.
    pub(in crate::rounders) lr: f32,
    /// Regulariser's weight, 0 during the warm-up.
    pub(in crate::rounders) lambda: f32,
    /// Regulariser's exponent.
    pub(in crate::rounders) beta: f32,
}

/// One weight being learned: Ŵ = s · (clamp(⌊W/s⌋ + z + h(V), qmin, qmax) − z) / m, for a W whose columns were
/// multiplied by m.
pub(in crate::rounders) struct WeightLearner {
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
    /// m, by column; empty: 1.
    multiplier: Vec<f32>,
    /// A gradient times 1/m, if there is an m.
    scaled: Vec<f32>,
}

/// A row-major weight with its columns times these factors (none: as it is).
pub(in crate::rounders) fn scaled_columns(mut weight: Vec<f32>, multiplier: &[f32]) -> Vec<f32> {
    if !multiplier.is_empty() {
        weight.iter_mut().zip(multiplier.iter().cycle()).for_each(|(w, m)| *w *= m);
    }
    weight
}

impl WeightLearner {
    /// Starts where the soft weights equal the weights (except where the grid clips them).
    ///
    /// `weight` is row-major of this shape, times the multiplier; `params` are its grid's step sizes and zero points. With
    /// `towards`, integers that someone else chose, each weight starts [`LEAN`] of the way to its integer, which is one of
    /// the two that it can become.
    pub(in crate::rounders) fn new(
        weight: Vec<f32>,
        shape: [usize; 2],
        grid: Grid,
        params: GridParams,
        multiplier: Vec<f32>,
        towards: Option<&[i8]>,
    ) -> Result<Self> {
        let nearest = round_nearest(&weight, shape, &grid, params.clone())?;
        let group_len = grid.layout(shape)?.group_len;
        let (low, high) = (f32::from(grid.qmin()) - 1.0, f32::from(grid.qmax()));
        let (base, v) = weight
            .iter()
            .enumerate()
            .map(|(i, w)| {
                let on_grid = w / params.scale[i / group_len] + f32::from(params.zero_point[i / group_len]);
                let base = on_grid.floor().clamp(low, high);
                let Some(towards) = towards else {
                    return (base as i16, inverse((on_grid - on_grid.floor()).clamp(0.0, 1.0)));
                };
                let goal = f32::from(towards[i]);
                let base = base.clamp(goal - 1.0, goal);
                let fraction = (on_grid - base).clamp(0.0, 1.0);
                (base as i16, inverse(fraction + LEAN * (goal - base - fraction)))
            })
            .unzip();
        let (first, second) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        let scaled = if multiplier.is_empty() { Vec::new() } else { vec![0.0; weight.len()] };
        let mut learner = Self {
            grid,
            shape,
            params,
            group_len,
            nearest,
            base,
            v,
            first,
            second,
            gain: 1.0,
            soft: weight,
            multiplier,
            scaled,
        };
        learner.refresh();
        learner.divide_soft();
        Ok(learner)
    }

    /// `[out_features, in_features]`.
    pub(in crate::rounders) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The weights as they are with the present V, row-major.
    pub(in crate::rounders) fn soft(&self) -> &[f32] {
        &self.soft
    }

    /// The same weight rounded to nearest on the same grid.
    pub(in crate::rounders) fn nearest(&self) -> &RoundedLayer {
        &self.nearest
    }

    /// Size of an output's error for inputs of size 1, rounded to nearest: errors are uniform within half a step either
    /// way, and those of a row add up like noise.
    pub(in crate::rounders) fn typical_error(&self) -> f32 {
        let steps = self.params.scale.iter().map(|s| f64::from(*s)).sum::<f64>();
        (steps / self.params.scale.len() as f64 * (self.shape[1] as f64 / 12.0).sqrt()) as f32
    }

    /// The multiplier of the columns; empty: 1.
    pub(in crate::rounders) fn multiplier(&self) -> &[f32] {
        &self.multiplier
    }

    /// The soft weights as the layer uses them: over the multiplier.
    fn divide_soft(&mut self) {
        if !self.multiplier.is_empty() {
            self.soft.par_chunks_mut(self.shape[1]).for_each(|row| {
                row.iter_mut().zip(&self.multiplier).for_each(|(w, m)| *w /= m);
            });
        }
    }

    /// Takes the size of the loss' gradient from `gradient` (with respect to the weights): its root mean square
    /// per step of the grid. Returns false if the gradient is not finite.
    pub(in crate::rounders) fn calibrate(&mut self, gradient: &[f32]) -> bool {
        let columns = self.shape[1];
        let multiplier = |i: usize| self.multiplier.get(i % columns).copied().unwrap_or(1.0);
        let scale = |i: usize| self.params.scale[i / self.group_len] / multiplier(i);
        let squares: f64 = gradient.iter().enumerate().map(|(i, g)| f64::from(g * scale(i)).powi(2)).sum();
        let size = (squares / gradient.len() as f64).sqrt();
        // A layer that the loss does not feel keeps its nearest neighbours: the regulariser alone decides.
        let gain = (1.0 / size) as f32;
        self.gain = if gain.is_finite() { gain } else { 1.0 };
        size.is_finite()
    }

    /// One step of Adam on V, with the loss' gradient with respect to the soft weights; then the soft weights of
    /// the new V. Returns false if the gradient is not finite.
    pub(in crate::rounders) fn step(&mut self, gradient: &[f32], step: &Step) -> bool {
        if self.multiplier.is_empty() {
            return self.sweep_all(gradient, step);
        }
        let (columns, mut scaled) = (self.shape[1], std::mem::take(&mut self.scaled));
        scaled.par_chunks_mut(columns).zip(gradient.par_chunks(columns)).for_each(|(out, row)| {
            out.iter_mut().zip(row).zip(&self.multiplier).for_each(|((out, g), m)| *out = g / m);
        });
        let finite = self.sweep_all(&scaled, step);
        self.scaled = scaled;
        self.divide_soft();
        finite
    }

    fn sweep_all(&mut self, gradient: &[f32], step: &Step) -> bool {
        let columns = self.shape[1];
        let run = self.group_len.min(columns);
        let share = columns * SHARE.div_ceil(columns);
        let grid = PassGrid::new(&self.grid);
        let adam = Adam::new(step.lr, step.iteration);
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
    pub(in crate::rounders) fn decided(&self) -> (usize, usize) {
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
    pub(in crate::rounders) fn harden(&self) -> RoundedLayer {
        let (low, high) = (i16::from(self.grid.qmin()), i16::from(self.grid.qmax()));
        let hard = |(&base, &v): (&i16, &f32)| (base + i16::from(v >= 0.0)).clamp(low, high) as i8;
        RoundedLayer {
            grid: self.grid,
            shape: self.shape,
            weight_int: self.base.iter().zip(&self.v).map(hard).collect(),
            scale: self.params.scale.clone(),
            zero_point: self.params.zero_point.clone(),
            learned: None,
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
    use crate::rounders::reconstruct::testing::Planted;
    use taq_core::quant::{Clipping, Granularity};

    fn learner(grid: Grid, clipping: Clipping) -> (WeightLearner, Vec<f32>) {
        let planted = Planted::new(3, 32, 24, 4);
        let weight = planted.weight().to_vec();
        let params = GridParams::fit(&weight, [24, 32], &grid, clipping).unwrap();
        (WeightLearner::new(weight.clone(), [24, 32], grid, params, vec![], None).unwrap(), weight)
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

    impl WeightLearner {
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
    fn objective(learner: &WeightLearner, i: usize, v: f64, gradient: f32, step: &Step) -> f64 {
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
                let mut again = WeightLearner {
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
    fn other_integers_can_be_the_start() {
        for grid in grids() {
            let planted = Planted::new(3, 32, 24, 4);
            let weight = planted.weight().to_vec();
            let params = GridParams::fit(&weight, [24, 32], &grid, Clipping::Mse).unwrap();
            let nearest = round_nearest(&weight, [24, 32], &grid, params.clone()).unwrap().weight_int;
            // Some further away than a neighbour.
            let other = |(i, q): (usize, &i8)| (q + (i % 5) as i8 - 2).clamp(grid.qmin(), grid.qmax());
            let towards: Vec<i8> =
                if grid.bits == 8 { nearest } else { nearest.iter().enumerate().map(other).collect() };
            let learner = WeightLearner::new(weight, [24, 32], grid, params, vec![], Some(&towards)).unwrap();
            assert_eq!(learner.harden().weight_int, towards, "{grid:?}");
        }
    }

    #[test]
    fn a_multiplier_is_a_change_of_variables() {
        // Learning W·m with the gradient of W is learning W' = W·m with the gradient of W'.
        for grid in grids() {
            let planted = Planted::new(3, 32, 24, 4);
            let multiplier: Vec<f32> = (0..32).map(|c| 1.0 + (c % 4) as f32).collect();
            let by_column = |values: &[f32], f: fn(f32, f32) -> f32| -> Vec<f32> {
                values.iter().zip(multiplier.iter().cycle()).map(|(v, m)| f(*v, *m)).collect()
            };
            let weight = by_column(planted.weight(), |w, m| w * m);
            let params = GridParams::fit(&weight, [24, 32], &grid, Clipping::Mse).unwrap();
            let new = |m: &[f32]| {
                WeightLearner::new(weight.clone(), [24, 32], grid, params.clone(), m.to_vec(), None).unwrap()
            };
            let (mut ours, mut plain) = (new(&multiplier), new(&[]));
            let gradient: Vec<f32> = (0..24 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let divided = by_column(&gradient, |g, m| g / m);
            assert!(ours.calibrate(&gradient) && plain.calibrate(&divided));
            assert!((ours.gain / plain.gain - 1.0).abs() < 1e-5);
            ours.gain = plain.gain;
            for iteration in 1..=3 {
                let step = Step { iteration, lr: 0.05, lambda: 0.1, beta: 5.0 };
                assert!(ours.step(&gradient, &step) && plain.step(&divided, &step));
                assert_eq!(ours.v, plain.v);
                assert_eq!(ours.soft, by_column(&plain.soft, |w, m| w / m));
            }
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
