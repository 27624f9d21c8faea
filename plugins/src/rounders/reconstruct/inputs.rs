//! Learned grids of one layer's input, and the correction of its bias.
//!
//! The step sizes follow LSQ (Esser et al., arXiv 1902.08153) as in QDrop and TaQ-DiT, on a logarithmic scale: s · e^θ
//! stays positive, and one learning rate suits all. Timesteps may share a step size (static, as in TaQ-DiT) or have one
//! each (as in its Python descendant); the correction of the bias is the same at all of them.

use mlx_rs::{Array, ops};
use taq_core::quant::{InputGrids, activation_qmax, to_vec};
use taq_core::{LayerGradients, LearnedInput, Result, RoundedLayer};

use super::adam::{Adam, Variables};
use super::calibrate::{count, groups};

/// Learning rates of what is not rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::rounders) struct InputRates {
    /// Of the logarithm of step sizes; 0: they stay.
    pub(in crate::rounders) scale: f32,
    /// Of the bias, in units of [`InputStart::bias_unit`]; 0: no correction.
    pub(in crate::rounders) bias: f32,
}

/// What an [`InputLearner`] starts from.
pub(in crate::rounders) struct InputStart {
    /// The group of each timestep, from 0: timesteps of a group share what is learned.
    pub(in crate::rounders) groups: Vec<usize>,
    /// Step sizes by group.
    pub(in crate::rounders) scale: Vec<f32>,
    /// Row-major `[steps, in_features]`, or empty.
    pub(in crate::rounders) shift: Vec<f32>,
    /// `[in_features]`, or empty.
    pub(in crate::rounders) multiplier: Vec<f32>,
    /// Size of a correction of the bias that matters.
    pub(in crate::rounders) bias_unit: f32,
    /// Learning rates.
    pub(in crate::rounders) rates: InputRates,
}

/// See the module's head.
pub(in crate::rounders) enum InputLearner {
    /// The plan holds, nothing is learned.
    Planned(InputGrids),
    /// What is learned.
    Learned(Box<Learned>),
}

/// Step sizes and biases on their way.
pub(in crate::rounders) struct Learned {
    /// Bits, shift and multiplier, which stay.
    grids: InputGrids,
    start: InputStart,
    /// The group of each timestep, `[steps]`, and for each group 1 where a timestep belongs to it, `[groups, steps]`.
    group: Array,
    members: Array,
    /// Step sizes at the start, `[groups]`, and the logarithm of what they are multiplied by.
    scale: Array,
    theta: Variables,
    /// `[out_features]`, the same at every timestep, in units of `bias_unit`; `None`: biases stay.
    bias: Option<Variables>,
}

impl InputLearner {
    /// The plan's grids, which stay.
    pub(in crate::rounders) fn planned(plan: &InputGrids) -> Self {
        Self::Planned(plan.clone())
    }

    /// Grids that are learned from this start, with the plan's bits.
    pub(in crate::rounders) fn calibrated(
        plan: &InputGrids,
        outputs: usize,
        start: InputStart,
    ) -> Result<Self> {
        let groups = start.scale.len() as i32;
        let steps = start.groups.len() as i32;
        let members = (0..start.scale.len())
            .flat_map(|group| start.groups.iter().map(move |&own| if own == group { 1.0 } else { 0.0 }));
        let by_step: Vec<f32> = start.groups.iter().map(|&group| start.scale[group]).collect();
        let mut grids = InputGrids::new(plan.bits.clone(), &by_step)?;
        let part =
            |values: &[f32], shape: &[i32]| (!values.is_empty()).then(|| Array::from_slice(values, shape));
        grids.shift = part(&start.shift, &[steps, (start.shift.len() / start.groups.len()) as i32]);
        grids.multiplier = part(&start.multiplier, &[start.multiplier.len() as i32]);
        let zeros = |n: i32| Variables::new(ops::zeros::<f32>(&[n])?);
        Ok(Self::Learned(Box::new(Learned {
            grids,
            group: Array::from_iter(start.groups.iter().map(|&group| group as i32), &[steps]),
            members: Array::from_iter(members, &[groups, steps]),
            scale: Array::from_slice(&start.scale, &[groups]),
            theta: zeros(groups)?,
            bias: if start.rates.bias > 0.0 { Some(zeros(outputs as i32)?) } else { None },
            start,
        })))
    }

    /// Goes on from what was learned of a layer's input; the plan's grids stay if nothing was.
    pub(in crate::rounders) fn again(
        plan: &InputGrids,
        rounded: &RoundedLayer,
        per_timestep: bool,
        rates: InputRates,
    ) -> Result<Self> {
        let Some(learned) = rounded.learned.clone() else { return Ok(Self::planned(plan)) };
        let groups = groups(&plan.bits, per_timestep);
        let first = (0..count(&groups)).filter_map(|group| groups.iter().position(|&g| g == group));
        let scale: Vec<f32> = first.clone().map(|step| learned.scale[step]).collect();
        // What the layer's inputs are about as large as: a third of the grid's range.
        let widest: Vec<f32> = first
            .map(|step| Ok(learned.scale[step] * activation_qmax(plan.bits[step])? / 3.0))
            .collect::<Result<_>>()?;
        let input = widest.iter().copied().fold(0.0, f32::max);
        let [outputs, inputs] = rounded.shape;
        let weight = rounded.scale.iter().sum::<f32>() / rounded.scale.len() as f32;
        let bias_unit = weight * (inputs as f32 / 12.0).sqrt() * input;
        let (shift, multiplier) = (learned.shift, learned.multiplier);
        let start = InputStart { groups, scale, shift, multiplier, bias_unit, rates };
        let mut again = Self::calibrated(plan, outputs, start)?;
        if let Self::Learned(own) = &mut again
            && !learned.bias.is_empty()
        {
            let units: Vec<f32> = learned.bias[..outputs].iter().map(|b| b / bias_unit).collect();
            own.bias = Some(Variables::new(Array::from_slice(&units, &[outputs as i32]))?);
        }
        Ok(again)
    }

    /// Learning rates; 0 if nothing is learned.
    pub(in crate::rounders) fn rates(&self) -> InputRates {
        match self {
            Self::Planned(_) => InputRates::default(),
            Self::Learned(learned) => learned.start.rates,
        }
    }

    /// The present grids, and the bias, `[steps, out_features]`.
    pub(in crate::rounders) fn arrays(&self) -> Result<(InputGrids, Option<Array>)> {
        match self {
            Self::Planned(plan) => Ok((plan.clone(), None)),
            Self::Learned(learned) => {
                let grids = InputGrids { scale: learned.scales()?, ..learned.grids.clone() };
                Ok((grids, learned.biases()?))
            }
        }
    }

    /// What was learned, in the place of the plan; `None`: the plan holds.
    pub(in crate::rounders) fn learned(&self) -> Result<Option<LearnedInput>> {
        let Self::Learned(learned) = self else { return Ok(None) };
        let bias = learned.biases()?;
        Ok(Some(LearnedInput {
            scale: to_vec(&learned.scales()?)?,
            shift: learned.start.shift.clone(),
            multiplier: learned.start.multiplier.clone(),
            bias: bias.as_ref().map_or(Ok(Vec::new()), to_vec)?,
        }))
    }

    /// One step of Adam; `left` is the share of the learning rates that is left. Lazy.
    pub(in crate::rounders) fn step(
        &mut self,
        gradients: &LayerGradients,
        iteration: usize,
        left: f32,
    ) -> Result<()> {
        let Self::Learned(learned) = self else { return Ok(()) };
        let rates = learned.start.rates;
        if rates.scale > 0.0 {
            let slopes = learned.members.matmul(gradients.scale.multiply(learned.scales()?)?)?;
            learned.theta.step(Adam::new(rates.scale * left, iteration), &slopes)?;
        }
        if let (Some(bias), Some(gradient)) = (&mut learned.bias, &gradients.bias) {
            bias.step(Adam::new(rates.bias * left, iteration), &gradient.sum_axis(0, false)?)?;
        }
        Ok(())
    }

    /// What has to be evaluated.
    pub(in crate::rounders) fn variables(&self) -> Vec<&Array> {
        let Self::Learned(learned) = self else { return Vec::new() };
        let bias = learned.bias.iter().flat_map(Variables::arrays);
        learned.theta.arrays().into_iter().chain(bias).collect()
    }

    /// Forgets the optimiser's moments.
    pub(in crate::rounders) fn rest(&mut self) -> Result<()> {
        let Self::Learned(learned) = self else { return Ok(()) };
        learned.theta.rest()?;
        learned.bias.as_mut().map_or(Ok(()), Variables::rest)
    }
}

impl Learned {
    /// Step sizes, `[steps]`.
    fn scales(&self) -> Result<Array> {
        Ok(self.scale.multiply(self.theta.values.exp()?)?.take_axis(&self.group, 0)?)
    }

    /// What is added to the bias, `[steps, out_features]`.
    fn biases(&self) -> Result<Option<Array>> {
        let Some(bias) = &self.bias else { return Ok(None) };
        let units = bias.values.multiply(Array::from_f32(self.start.bias_unit))?;
        let shape = [self.group.dim(0), units.dim(0)];
        Ok(Some(ops::broadcast_to(&units, &shape)?))
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
            multiplier: vec![1.0, 4.0],
            bias_unit: 10.0,
            rates,
        };
        InputLearner::calibrated(&plan, 2, start).unwrap()
    }

    fn gradients(scale: [f32; 3]) -> LayerGradients {
        LayerGradients {
            weight: Array::from_f32(0.0),
            scale: Array::from_slice(&scale, &[3]),
            bias: Some(Array::from_slice(&[1.0_f32, 1.0, 1.0, -3.0, 0.0, -2.0], &[3, 2])),
        }
    }

    #[test]
    fn timesteps_of_a_group_share_what_is_learned() {
        let mut learner = learner(InputRates { scale: 0.01, bias: 0.1 });
        learner.step(&gradients([1.0, 3.0, -1.0]), 1, 1.0).unwrap();
        let learned = learner.learned().unwrap().unwrap();
        // Adam's first step has the size of the learning rate, against the sum of the group's gradients.
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(close(&learned.scale, &[0.99005, 0.99005, 2.0201]), "{:?}", learned.scale);
        assert!(close(&learned.bias, &[-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]), "{:?}", learned.bias);
        assert_eq!((learned.shift, learned.multiplier), (vec![0.5; 6], vec![1.0, 4.0]));
        let (grids, bias) = learner.arrays().unwrap();
        assert_eq!((grids.bits.as_slice(), bias.unwrap().shape()), ([8, 8, 4].as_slice(), [3, 2].as_slice()));
        assert_eq!(
            (grids.shift.unwrap().shape(), grids.multiplier.unwrap().shape()),
            ([3, 2].as_slice(), [2].as_slice())
        );
        // A gradient that is not finite shows.
        learner.step(&gradients([f32::NAN, 0.0, 0.0]), 2, 1.0).unwrap();
        let sum = |a: &Array| a.sum(None).unwrap().item_exact::<f32>();
        assert!(learner.variables().into_iter().any(|a| sum(a).is_nan()));
    }

    #[test]
    fn rates_of_zero_leave_things_alone() {
        let mut fixed = learner(InputRates::default());
        fixed.step(&gradients([1.0; 3]), 1, 1.0).unwrap();
        let learned = fixed.learned().unwrap().unwrap();
        assert_eq!((learned.scale, learned.bias), (vec![1.0, 1.0, 2.0], vec![]));
        let plan = InputGrids::new(vec![8], &[3.0]).unwrap();
        assert_eq!(InputLearner::planned(&plan).learned().unwrap(), None);
    }
}
