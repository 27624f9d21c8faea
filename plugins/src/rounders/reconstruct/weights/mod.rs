//! Learned rounding of one layer's weight: the variables V of AdaRound and their optimiser.

mod graph;
mod kernel;
mod pass;

use mlx_rs::{Array, ops};
use taq_core::quant::{Grid, GridParams, is_finite, round_nearest, to_vec};
use taq_core::{Error, Result, RoundedLayer};

pub(in crate::rounders) use pass::Step;

use super::adam::Adam;
use super::soft::{inverse, rectified_sigmoid};
use pass::{Frame, Numbers, Pass, State};

/// How far a weight starts on the way to an integer that someone else chose. Not all the way: there h is flat.
const LEAN: f32 = 0.75;

/// A weight is decided if h is this close to 0 or 1.
const DECIDED: f32 = 0.01;

/// One weight being learned: Ŵ = s · (clamp(⌊W/s⌋ + z + h(V), qmin, qmax) − z).
pub(in crate::rounders) struct WeightLearner {
    grid: Grid,
    shape: [usize; 2],
    params: GridParams,
    nearest: RoundedLayer,
    frame: Frame,
    state: State,
    pass: Pass,
    /// One over the typical size of the loss' gradient with respect to h.
    gain: f32,
    /// Weights that have a choice.
    free: usize,
}

impl WeightLearner {
    /// Starts where the soft weights equal the weights (except where the grid clips them).
    ///
    /// `weight` is row-major of this shape; `params` are its grid's step sizes and zero points. With
    /// `towards`, integers that someone else chose, each weight starts [`LEAN`] of the way to its integer, which is one of
    /// the two that it can become.
    pub(in crate::rounders) fn new(
        weight: &[f32],
        shape: [usize; 2],
        grid: Grid,
        params: GridParams,
        towards: Option<&[i8]>,
    ) -> Result<Self> {
        let nearest = round_nearest(weight, shape, &grid, params.clone())?;
        let layout = grid.layout(shape)?;
        let (low, high) = (f32::from(grid.qmin()), f32::from(grid.qmax()));
        let (mut base, mut v, mut soft) = (Vec::new(), Vec::new(), Vec::new());
        let mut free = 0;
        for (i, w) in weight.iter().enumerate() {
            let group = i / layout.group_len;
            let (scale, zero) = (params.scale[group], params.zero_point[group]);
            let on_grid = w / scale + zero;
            let down = on_grid.floor().clamp(low - 1.0, high);
            let (down, fraction) = match towards {
                None => (down, (on_grid - on_grid.floor()).clamp(0.0, 1.0)),
                Some(towards) => {
                    let goal = f32::from(towards[i]);
                    let down = down.clamp(goal - 1.0, goal);
                    let fraction = (on_grid - down).clamp(0.0, 1.0);
                    (down, fraction + LEAN * (goal - down - fraction))
                }
            };
            base.push(down as i16);
            v.push(inverse(fraction));
            free += usize::from(down >= low && down < high);
            let h = rectified_sigmoid(v[i]).0;
            soft.push(((down + h).clamp(low, high) - zero) * scale);
        }
        let groups = layout.groups as i32;
        let whole = [groups, layout.group_len as i32];
        let zeros = ops::zeros::<f32>(&whole)?;
        let frame = Frame {
            base: Array::from_slice(&base, &whole),
            scale: Array::from_slice(&params.scale, &[groups, 1]),
            zero: Array::from_slice(&params.zero_point, &[groups, 1]),
            low,
            high,
        };
        let state = State {
            v: Array::from_slice(&v, &whole),
            first: zeros.clone(),
            second: zeros,
            soft: Array::from_slice(&soft, &whole),
        };
        Ok(Self { grid, shape, params, nearest, frame, state, pass: Pass::new(), gain: 1.0, free })
    }

    /// The weights as they are with the present V, `[out_features, in_features]`.
    pub(in crate::rounders) fn soft(&self) -> Result<Array> {
        Ok(self.state.soft.reshape(&self.shape.map(|n| n as i32))?)
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

    /// Takes the size of the loss' gradient from `gradient` (with respect to the weights): its root mean square
    /// per step of the grid.
    pub(in crate::rounders) fn calibrate(&mut self, gradient: &Array) -> Result<()> {
        let by_step = gradient.reshape(self.frame.base.shape())?.multiply(&self.frame.scale)?;
        let size = to_vec(&by_step.square()?.mean(None)?)?[0].sqrt();
        // A layer that the loss does not feel keeps its nearest neighbours: the regulariser alone decides.
        let gain = 1.0 / size;
        self.gain = if gain.is_finite() { gain } else { 1.0 };
        Ok(())
    }

    /// One step of Adam on V, with the loss' gradient with respect to the soft weights; then the soft weights of
    /// the new V. Lazy.
    pub(in crate::rounders) fn step(&mut self, gradient: &Array, step: &Step) -> Result<()> {
        let numbers = Numbers {
            adam: Adam::new(step.lr, step.iteration),
            gain: self.gain,
            lambda: step.lambda,
            beta: step.beta,
        };
        let gradient = gradient.reshape(self.frame.base.shape())?;
        self.state = self.pass.run(&self.frame, &self.state, &gradient, numbers)?;
        Ok(())
    }

    /// What has to be evaluated.
    pub(in crate::rounders) fn arrays(&self) -> [&Array; 4] {
        let State { v, first, second, soft } = &self.state;
        [v, first, second, soft]
    }

    /// False once a gradient was not finite.
    pub(in crate::rounders) fn is_finite(&self) -> Result<bool> {
        is_finite(&self.state.v)
    }

    /// Weights that are up or down to within [`DECIDED`], and weights that have a choice.
    pub(in crate::rounders) fn decided(&self) -> Result<(usize, usize)> {
        let Frame { base, low, high, .. } = &self.frame;
        let number = |x: f32| Array::from_slice(&[x as i16], &[1]);
        let free = base.ge(number(*low))?.logical_and(base.lt(number(*high))?)?;
        let decided = self.state.v.abs()?.ge(Array::from_f32(inverse(1.0 - DECIDED)))?;
        let count = decided.logical_and(free)?.sum(None)?;
        Ok((to_vec(&count)?[0] as usize, self.free))
    }

    /// The integers: up where V ≥ 0.
    pub(in crate::rounders) fn harden(&self) -> Result<RoundedLayer> {
        let (low, high) = (i16::from(self.grid.qmin()), i16::from(self.grid.qmax()));
        let hard = |(&base, v): (&i16, f32)| (base + i16::from(v >= 0.0)).clamp(low, high) as i8;
        let base = self.frame.base.try_as_slice::<i16>();
        let base = base.map_err(|e| Error::Mlx(mlx_rs::error::Exception::custom(e.to_string())))?;
        Ok(RoundedLayer {
            grid: self.grid,
            shape: self.shape,
            weight_int: base.iter().zip(to_vec(&self.state.v)?).map(hard).collect(),
            scale: self.params.scale.clone(),
            zero_point: self.params.zero_point.clone(),
            learned: None,
        })
    }
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
        (WeightLearner::new(&weight, [24, 32], grid, params, None).unwrap(), weight)
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
            for (i, (soft, w)) in learner.soft().unwrap().as_slice::<f32>().iter().zip(&weight).enumerate() {
                let step = learner.params.scale[i / learner.group_len()];
                assert!((soft - w).abs() <= 1e-4 * step, "{grid:?} {i}: {w} became {soft}");
            }
        }
    }

    impl WeightLearner {
        fn base(&self, i: usize) -> i16 {
            self.frame.base.as_slice::<i16>()[i]
        }

        fn group_len(&self) -> usize {
            self.frame.base.dim(1) as usize
        }

        fn grid_has_room(&self, i: usize) -> bool {
            (i16::from(self.grid.qmin())..i16::from(self.grid.qmax())).contains(&self.base(i))
        }

        fn v(&self) -> Vec<f32> {
            self.state.v.as_slice().to_vec()
        }
    }

    #[test]
    fn hard_weights_are_neighbours_and_the_start_is_nearest() {
        for grid in grids() {
            for clipping in [Clipping::Absmax, Clipping::Mse] {
                let (learner, _) = learner(grid, clipping);
                assert_eq!(&learner.harden().unwrap(), learner.nearest(), "{grid:?} {clipping:?}");
            }
        }
    }

    /// What weight `i` contributes to the objective at V = `v` when the loss is Σ gᵢ ŵᵢ.
    fn objective(learner: &WeightLearner, i: usize, v: f64, gradient: f32, step: &Step) -> f64 {
        let (low, high) = (f64::from(learner.grid.qmin()), f64::from(learner.grid.qmax()));
        let h = (1.2 / (1.0 + (-v).exp()) - 0.1).clamp(0.0, 1.0);
        let in_steps = (f64::from(learner.base(i)) + h).clamp(low, high);
        let scale = f64::from(learner.params.scale[i / learner.group_len()]);
        let loss = f64::from(learner.gain) * f64::from(gradient) * in_steps * scale;
        let free = f64::from(u8::from(learner.grid_has_room(i)));
        loss + free * f64::from(step.lambda) * (1.0 - (2.0 * h - 1.0).abs().powf(f64::from(step.beta)))
    }

    #[test]
    fn steps_follow_textbook_adam_on_a_numerical_gradient() {
        for (grid, lambda) in grids().into_iter().flat_map(|g| [(g, 0.0), (g, 0.3)]) {
            let (mut ours, _) = learner(grid, Clipping::Mse);
            let mut rng = rand_mt::Mt::new(9);
            let n = 24 * 32;
            let (mut first, mut second) = (vec![0.0_f64; n], vec![0.0_f64; n]);
            let mut compared = 0;
            for iteration in 1..=4 {
                let gradient: Vec<f32> =
                    (0..n).map(|_| (f64::from(rng.next_u32()) / 2e9 - 1.0) as f32).collect();
                let as_array = Array::from_slice(&gradient, &[24, 32]);
                if iteration == 1 {
                    ours.calibrate(&as_array).unwrap();
                }
                let step = Step { iteration, lr: 0.05, lambda, beta: 7.0 };
                let (before, state) = (ours.v(), ours.state.clone());
                ours.step(&as_array, &step).unwrap();
                let after = ours.v();
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
                        let found = f64::from(after[i]);
                        assert!(
                            (expected - found).abs() < 1e-4,
                            "{grid:?} λ={lambda} {i}: {expected} {found}"
                        );
                    }
                }
                // The soft weights are those of the new V.
                let (soft, params) = (ours.soft().unwrap(), &ours.params);
                for (i, soft) in soft.as_slice::<f32>().iter().enumerate() {
                    let group = i / ours.group_len();
                    let (scale, zero) = (params.scale[group], params.zero_point[group]);
                    let h = rectified_sigmoid(after[i]).0;
                    let on_grid = (f32::from(ours.base(i)) + h).clamp(ours.frame.low, ours.frame.high);
                    assert_eq!(*soft, (on_grid - zero) * scale);
                }
                // Other devices compute the same.
                let numbers =
                    Numbers { adam: Adam::new(0.05, iteration), gain: ours.gain, lambda, beta: step.beta };
                let gradient = as_array.reshape(ours.frame.base.shape()).unwrap();
                let arguments = graph::arguments(&ours.frame, &state, &gradient, numbers).unwrap();
                for (composed, ours) in graph::step(&arguments).unwrap().iter().zip(ours.arrays()) {
                    assert_eq!(composed.shape(), ours.shape());
                    let pairs = composed.as_slice::<f32>().iter().zip(ours.as_slice::<f32>());
                    for ((a, b), v) in pairs.zip(&before) {
                        let kink = (v.abs() - 11.0_f32.ln()).abs() < 1e-4;
                        let close = (a - b).abs() <= 2e-5 * (1.0 + b.abs());
                        assert!(kink || close, "{grid:?} λ={lambda}: {a} {b}");
                    }
                }
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
            let learner = WeightLearner::new(&weight, [24, 32], grid, params, Some(&towards)).unwrap();
            assert_eq!(learner.harden().unwrap().weight_int, towards, "{grid:?}");
        }
    }

    #[test]
    fn a_large_group_is_shared_out() {
        // One step size for more weights than a thread takes at a time: as in groups of a row.
        let shape = [48, 1024];
        let weight: Vec<f32> = (0..48 * 1024).map(|i| ((i * 37 % 1009) as f32 - 504.0) / 504.0).collect();
        let v = |granularity| {
            let grid = Grid::new(4, granularity, true).unwrap();
            let groups = grid.layout(shape).unwrap().groups;
            let params =
                GridParams { scale: vec![0.1; groups], zero_point: vec![0.0; groups], groups_per_row: 1 };
            let mut learner = WeightLearner::new(&weight, shape, grid, params, None).unwrap();
            let gradient = Array::from_slice(&weight, &[48, 1024]).square().unwrap();
            learner.calibrate(&gradient).unwrap();
            for iteration in 1..=3 {
                let step = Step { iteration, lr: 0.05, lambda: 0.1, beta: 5.0 };
                learner.step(&gradient, &step).unwrap();
            }
            (learner.v(), learner.soft().unwrap().as_slice::<f32>().to_vec(), learner.decided().unwrap())
        };
        assert_eq!(v(Granularity::Tensor), v(Granularity::Channel));
    }

    #[test]
    fn decided_weights_are_counted() {
        for grid in grids() {
            let (mut learner, _) = learner(grid, Clipping::Absmax);
            let v: Vec<f32> = (0..24 * 32).map(|i| (i % 9) as f32 - 4.0).collect();
            learner.state.v = Array::from_slice(&v, learner.frame.base.shape());
            let free = |i: &usize| learner.grid_has_room(*i);
            let expected = (0..v.len()).filter(free).filter(|&i| {
                let h = rectified_sigmoid(v[i]).0;
                !(0.01..=0.99).contains(&h)
            });
            let all = (0..v.len()).filter(free).count();
            assert_eq!(learner.decided().unwrap(), (expected.count(), all), "{grid:?}");
            assert!(all > 0);
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_noticed() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut learner, _) = learner(grids()[1], Clipping::Absmax);
            let step = Step { iteration: 1, lr: 0.01, lambda: 0.1, beta: 20.0 };
            let mut gradient = vec![1.0; 24 * 32];
            learner.step(&Array::from_slice(&gradient, &[24, 32]), &step).unwrap();
            assert!(learner.is_finite().unwrap());
            gradient[700] = bad;
            learner.step(&Array::from_slice(&gradient, &[24, 32]), &step).unwrap();
            assert!(!learner.is_finite().unwrap());
        }
    }
}
