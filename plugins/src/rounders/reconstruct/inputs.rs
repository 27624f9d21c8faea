//! Learned grids of one layer's input, and the correction of its bias.
//!
//! The step sizes follow LSQ (Esser et al., arXiv 1902.08153) as in QDrop and TaQ-DiT, on a logarithmic scale: s · e^θ
//! stays positive, and one learning rate suits all. Timesteps may share a step size (static, as in TaQ-DiT) or have one
//! each (as in its Python descendant); the correction of the bias is the same at all of them.

use mlx_rs::Array;
use taq_core::LearnedInput;
use taq_core::Result;
use taq_core::quant::InputGrids;

use super::adam::{Adam, Variables};
use super::layer::Gradients;

/// Learning rates of what is not rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::rounders) struct InputRates {
    /// Of the logarithm of step sizes; 0: they stay.
    pub(in crate::rounders) scale: f32,
    /// Of the bias, in units of [`InputLearner`]'s `bias_unit`; 0: no correction.
    pub(in crate::rounders) bias: f32,
}

/// See the module's head.
pub(in crate::rounders) struct InputLearner {
    /// What it starts from; the plan's unless [`Self::calibrated`].
    plan: InputGrids,
    /// `None`: the plan holds, nothing is learned.
    learned: Option<Learned>,
}

struct Learned {
    /// The group of each timestep, from 0: timesteps of a group share what is learned.
    groups: Vec<usize>,
    /// Step sizes at the start, by group.
    start: Vec<f32>,
    theta: Variables,
    /// Row-major `[steps, in_features]`, or empty.
    shift: Vec<f32>,
    /// `[out_features]`, the same at every timestep, in units of `bias_unit`; empty if biases stay.
    bias: Variables,
    bias_unit: f32,
    rates: InputRates,
}

/// What an [`InputLearner`] starts from.
pub(in crate::rounders) struct InputStart {
    /// The group of each timestep.
    pub(in crate::rounders) groups: Vec<usize>,
    /// Step sizes by group.
    pub(in crate::rounders) scale: Vec<f32>,
    /// Row-major `[steps, in_features]`, or empty.
    pub(in crate::rounders) shift: Vec<f32>,
    /// Size of a correction of the bias that matters.
    pub(in crate::rounders) bias_unit: f32,
    /// Learning rates.
    pub(in crate::rounders) rates: InputRates,
}

impl InputLearner {
    /// The plan's grids, which stay.
    pub(in crate::rounders) fn planned(plan: &InputGrids) -> Self {
        Self { plan: plan.clone(), learned: None }
    }

    /// Grids that are learned from this start, with the plan's bits.
    pub(in crate::rounders) fn calibrated(plan: &InputGrids, outputs: usize, start: InputStart) -> Self {
        let InputStart { groups, scale, shift, bias_unit, rates } = start;
        let biases = if rates.bias > 0.0 { outputs } else { 0 };
        let learned = Learned {
            groups,
            theta: Variables::new(vec![0.0; scale.len()]),
            start: scale,
            shift,
            bias: Variables::new(vec![0.0; biases]),
            bias_unit,
            rates,
        };
        Self { plan: plan.clone(), learned: Some(learned) }
    }

    /// Learning rates; 0 if nothing is learned.
    pub(in crate::rounders) fn rates(&self) -> InputRates {
        self.learned.as_ref().map_or(InputRates::default(), |l| l.rates)
    }

    /// The present grids and bias.
    pub(in crate::rounders) fn arrays(
        &self,
        [outputs, inputs]: [usize; 2],
        multiplier: &[f32],
    ) -> Result<(InputGrids, Option<Array>)> {
        let Some(learned) = self.learned(multiplier) else { return Ok((self.plan.clone(), None)) };
        let steps = self.plan.steps() as i32;
        let part =
            |values: &[f32], shape: &[i32]| (!values.is_empty()).then(|| Array::from_slice(values, shape));
        let mut grids = InputGrids::new(self.plan.bits.clone(), &learned.scale)?;
        grids.shift = part(&learned.shift, &[steps, inputs as i32]);
        grids.multiplier = part(&learned.multiplier, &[inputs as i32]);
        Ok((grids, part(&learned.bias, &[steps, outputs as i32])))
    }

    /// What was learned, in the place of the plan; `None`: the plan holds.
    pub(in crate::rounders) fn learned(&self, multiplier: &[f32]) -> Option<LearnedInput> {
        let learned = self.learned.as_ref()?;
        let scales = learned.scales();
        let bias: Vec<f32> = learned.bias.values.iter().map(|b| b * learned.bias_unit).collect();
        Some(LearnedInput {
            scale: learned.groups.iter().map(|&group| scales[group]).collect(),
            shift: learned.shift.clone(),
            multiplier: multiplier.to_vec(),
            bias: bias.repeat(learned.groups.len()),
        })
    }

    /// One step of Adam; `left` is the share of the learning rates that is left. False if a gradient is not finite.
    pub(in crate::rounders) fn step(
        &mut self,
        gradients: &Gradients<'_>,
        iteration: usize,
        left: f32,
    ) -> bool {
        let Some(learned) = &mut self.learned else { return true };
        let scales = learned.scales();
        let mut slopes = vec![0.0; scales.len()];
        for (&group, gradient) in learned.groups.iter().zip(gradients.scale) {
            slopes[group] += gradient * scales[group];
        }
        if learned.rates.scale > 0.0 {
            learned.theta.step(Adam::new(learned.rates.scale * left, iteration), &slopes);
        }
        let outputs = learned.bias.values.len();
        let mut towards = vec![0.0; outputs];
        if outputs > 0 {
            for gradient in gradients.bias.chunks(outputs) {
                towards.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
            learned.bias.step(Adam::new(learned.rates.bias * left, iteration), &towards);
        }
        slopes.iter().chain(&towards).all(|g| g.is_finite())
    }

    /// Forgets the optimiser's moments.
    pub(in crate::rounders) fn rest(&mut self) {
        if let Some(learned) = &mut self.learned {
            learned.theta = Variables::new(std::mem::take(&mut learned.theta.values));
            learned.bias = Variables::new(std::mem::take(&mut learned.bias.values));
        }
    }
}

impl Learned {
    /// Step sizes by group.
    fn scales(&self) -> Vec<f32> {
        self.start.iter().zip(&self.theta.values).map(|(s, theta)| s * theta.exp()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learner(rates: InputRates) -> InputLearner {
        let plan = InputGrids::new(vec![8, 8, 4], &[9.0; 3]).unwrap();
        let start = InputStart {
            groups: vec![0, 0, 1],
            scale: vec![1.0, 2.0],
            shift: vec![0.5; 6],
            bias_unit: 10.0,
            rates,
        };
        InputLearner::calibrated(&plan, 2, start)
    }

    #[test]
    fn timesteps_of_a_group_share_what_is_learned() {
        let mut learner = learner(InputRates { scale: 0.01, bias: 0.1 });
        let gradients =
            Gradients { weight: &[], scale: &[1.0, 3.0, -1.0], bias: &[1.0, 1.0, 1.0, -3.0, 0.0, -2.0] };
        assert!(learner.step(&gradients, 1, 1.0));
        let learned = learner.learned(&[]).unwrap();
        // Adam's first step has the size of the learning rate, against the sum of the group's gradients.
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(close(&learned.scale, &[0.99005, 0.99005, 2.0201]), "{:?}", learned.scale);
        assert!(close(&learned.bias, &[-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]), "{:?}", learned.bias);
        let (grids, bias) = learner.arrays([2, 2], &[]).unwrap();
        assert_eq!((grids.bits.as_slice(), bias.unwrap().shape()), ([8, 8, 4].as_slice(), [3, 2].as_slice()));
        let broken = Gradients { scale: &[f32::NAN, 0.0, 0.0], ..gradients };
        assert!(!learner.step(&broken, 2, 1.0));
    }

    #[test]
    fn rates_of_zero_leave_things_alone() {
        let mut fixed = learner(InputRates::default());
        let gradients = Gradients { weight: &[], scale: &[1.0; 3], bias: &[] };
        assert!(fixed.step(&gradients, 1, 1.0));
        let learned = fixed.learned(&[]).unwrap();
        assert_eq!((learned.scale, learned.bias), (vec![1.0, 1.0, 2.0], vec![]));
        let plan = InputGrids::new(vec![8], &[3.0]).unwrap();
        assert_eq!(InputLearner::planned(&plan).learned(&[]), None);
    }
}
