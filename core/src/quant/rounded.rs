//! From integers back to weights, and whether they are sound.

use mlx_rs::Array;
use rayon::prelude::*;

use super::{GridParams, InputGrids, QuantizedLayer};
use crate::{Error, LayerId, LayerSpec, LearnedInput, Result, RoundedLayer};

impl RoundedLayer {
    /// The weight that the integers stand for, `(weight_int − zero_point) · scale`, row-major.
    ///
    /// Expects a layer that [`Self::validate`] accepts; of others, what lies beyond the last group is 0.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.weight_int.len()];
        let group_len = (values.len() / self.scale.len().max(1)).max(1);
        values
            .par_chunks_mut(group_len)
            .zip(self.weight_int.par_chunks(group_len))
            .zip(self.scale.par_iter().zip(&self.zero_point))
            .for_each(|((out, integers), (&scale, &zero))| {
                for (value, &q) in out.iter_mut().zip(integers) {
                    *value = (f32::from(q) - zero) * scale;
                }
            });
        values
    }

    /// The weight that the integers stand for, `[out_features, in_features]`, f32.
    pub fn dequantize(&self) -> Result<Array> {
        self.check_numbers("rounded weight")?;
        Ok(Array::from_slice(&self.values(), &self.shape.map(|n| n as i32)))
    }

    /// The layer as it computes, on the plan's grids of its input except for what was learned of them.
    pub fn quantized(&self, plan: &InputGrids) -> Result<QuantizedLayer> {
        let (weight, input) = (self.dequantize()?, self.input(plan)?);
        let shape = [plan.steps(), self.shape[0]].map(|n| n as i32);
        let bias = self.learned.as_ref().and_then(|l| part(&l.bias, &shape));
        Ok(QuantizedLayer { weight, input, bias })
    }

    /// The grids of the layer's input: the plan's, or what was learned in their place.
    pub(crate) fn input(&self, plan: &InputGrids) -> Result<InputGrids> {
        let Some(learned) = &self.learned else { return Ok(plan.clone()) };
        learned.check("learned input", self.shape, plan.steps())?;
        let (steps, inputs) = (plan.steps() as i32, self.shape[1] as i32);
        let mut input = InputGrids::new(plan.bits.clone(), &learned.scale)?;
        input.shift = part(&learned.shift, &[steps, inputs]);
        input.multiplier = part(&learned.multiplier, &[inputs]);
        input.dynamic = plan.dynamic;
        Ok(input)
    }

    /// The step sizes and zero points alone.
    pub fn params(&self) -> Result<GridParams> {
        Ok(GridParams {
            scale: self.scale.clone(),
            zero_point: self.zero_point.clone(),
            groups_per_row: self.grid.layout(self.shape)?.groups_per_row,
        })
    }

    /// Whether these integers can be the layer's weight: its shape, as many numbers as the grid asks for,
    /// integers within its range, step sizes finite and greater than 0, zero points finite, and 0 if it is symmetric; and the same
    /// of what was learned of its input, for so many timesteps.
    pub fn validate(&self, layer: &LayerSpec, steps: usize) -> Result<()> {
        self.check(&layer.id, [layer.out_features, layer.in_features], steps)
    }

    /// [`Self::validate`] of a layer of this shape.
    pub(crate) fn check(&self, id: &LayerId, expected: [usize; 2], steps: usize) -> Result<()> {
        let what = format!("rounded weight of layer `{id}`");
        if self.shape != expected {
            return Err(Error::Shape {
                what,
                expected: format!("{expected:?}"),
                found: self.shape.iter().map(|&n| n as i32).collect(),
            });
        }
        self.check_numbers(&what)?;
        self.learned.as_ref().map_or(Ok(()), |l| l.check(&what, self.shape, steps))
    }

    pub(super) fn check_numbers(&self, what: &str) -> Result<()> {
        let grid = &self.grid;
        let groups = grid.layout(self.shape)?.groups;
        let (low, high) = (grid.qmin(), grid.qmax());
        let weights = self.shape.iter().product::<usize>();
        for (part, expected, found) in [
            ("weight_int", weights, self.weight_int.len()),
            ("scale", groups, self.scale.len()),
            ("zero_point", groups, self.zero_point.len()),
        ] {
            if expected != found {
                return Err(Error::Shape {
                    what: format!("{what}, {part}"),
                    expected: format!("[{expected}]"),
                    found: vec![found as i32],
                });
            }
        }
        for (part, values) in [("scale", &self.scale), ("zero_point", &self.zero_point)] {
            if !values.iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { what: format!("{what}, {part}") });
            }
        }
        if let Some(i) = self.scale.iter().position(|s| *s <= 0.0) {
            let reason = format!("scale[{i}] = {}, expected a number greater than 0", self.scale[i]);
            return Err(Error::settings(what, reason));
        }
        if let Some(i) = self.weight_int.iter().position(|q| *q < low || *q > high) {
            let (found, bits) = (self.weight_int[i], grid.bits);
            let reason =
                format!("weight_int[{i}] = {found}, expected {low} to {high} on a grid of {bits} bits");
            return Err(Error::settings(what, reason));
        }
        if let Some(i) = self.zero_point.iter().position(|z| grid.symmetric && *z != 0.0) {
            let reason = format!("zero_point[{i}] = {}, expected 0 on a symmetric grid", self.zero_point[i]);
            return Err(Error::settings(what, reason));
        }
        Ok(())
    }
}

/// An array, unless there are no values.
fn part(values: &[f32], shape: &[i32]) -> Option<Array> {
    (!values.is_empty()).then(|| Array::from_slice(values, shape))
}

impl LearnedInput {
    fn check(&self, what: &str, [outputs, inputs]: [usize; 2], steps: usize) -> Result<()> {
        for (part, values, expected, optional, positive) in [
            ("a_scale", &self.scale, steps, false, true),
            ("a_shift", &self.shift, steps * inputs, true, false),
            ("multiplier", &self.multiplier, inputs, true, true),
            ("bias", &self.bias, steps * outputs, true, false),
        ] {
            if values.len() != expected && !(optional && values.is_empty()) {
                return Err(Error::Shape {
                    what: format!("{what}, {part}"),
                    expected: format!("[{expected}]"),
                    found: vec![values.len() as i32],
                });
            }
            if !values.iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { what: format!("{what}, {part}") });
            }
            if let Some(i) = values.iter().position(|v| positive && *v <= 0.0) {
                let reason = format!("{part}[{i}] = {}, expected a number greater than 0", values[i]);
                return Err(Error::settings(what, reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Granularity, Grid};
    use crate::{Role, Stream};

    fn spec() -> LayerSpec {
        LayerSpec {
            id: "l".into(),
            block: "b".into(),
            stream: Stream::Image,
            role: Role::Q,
            in_features: 4,
            out_features: 2,
            post_gelu: false,
        }
    }

    fn layer() -> RoundedLayer {
        RoundedLayer {
            grid: Grid::new(4, Granularity::Group(2), false).unwrap(),
            shape: [2, 4],
            weight_int: vec![-8, 7, 0, 1, 2, 3, 4, 5],
            scale: vec![0.5, 1.0, 2.0, 4.0],
            zero_point: vec![0.0, 1.0, -8.0, 5.5],
            learned: None,
        }
    }

    #[test]
    fn dequantizes_by_group() {
        let values = [-4.0, 3.5, -1.0, 0.0, 20.0, 22.0, -6.0, -2.0];
        let array = layer().dequantize().unwrap();
        assert_eq!(array.shape(), [2, 4]);
        assert_eq!(array.as_slice::<f32>(), values);
        let eight = RoundedLayer {
            grid: Grid::new(8, Granularity::Tensor, false).unwrap(),
            shape: [1, 2],
            weight_int: vec![127, -128],
            scale: vec![1.0],
            zero_point: vec![-128.0],
            learned: None,
        };
        assert_eq!(eight.values(), [255.0, 0.0]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        layer().validate(&spec(), 1).unwrap();
        let message = |change: &dyn Fn(&mut RoundedLayer)| {
            let mut l = layer();
            change(&mut l);
            l.validate(&spec(), 2).unwrap_err().to_string()
        };
        let head = "rounded weight of layer `l`";
        assert_eq!(message(&|l| l.shape = [4, 2]), format!("{head}: expected shape [2, 4], found [4, 2]"));
        assert_eq!(
            message(&|l| _ = l.weight_int.pop()),
            format!("{head}, weight_int: expected shape [8], found [7]")
        );
        assert_eq!(message(&|l| l.scale.push(1.0)), format!("{head}, scale: expected shape [4], found [5]"));
        assert_eq!(
            message(&|l| l.scale[1] = f32::NAN),
            format!("{head}, scale holds NaN or infinite values")
        );
        assert_eq!(
            message(&|l| l.scale[1] = 0.0),
            format!("{head}: scale[1] = 0, expected a number greater than 0")
        );
        assert_eq!(
            message(&|l| l.weight_int[3] = 8),
            format!("{head}: weight_int[3] = 8, expected -8 to 7 on a grid of 4 bits")
        );
        assert_eq!(
            message(&|l| l.grid.symmetric = true),
            format!("{head}: zero_point[1] = 1, expected 0 on a symmetric grid")
        );
        assert!(message(&|l| l.grid.bits = 9).contains("bits = 9"));
        let learned = |change: &dyn Fn(&mut LearnedInput)| {
            let mut learned = LearnedInput { scale: vec![1.0, 2.0], ..Default::default() };
            change(&mut learned);
            message(&|l| l.learned = Some(learned.clone()))
        };
        assert_eq!(
            learned(&|l| l.scale.push(1.0)),
            format!("{head}, a_scale: expected shape [2], found [3]")
        );
        assert_eq!(
            learned(&|l| l.scale[1] = -1.0),
            format!("{head}: a_scale[1] = -1, expected a number greater than 0")
        );
        assert_eq!(
            learned(&|l| l.shift = vec![f32::NAN; 8]),
            format!("{head}, a_shift holds NaN or infinite values")
        );
        assert_eq!(
            learned(&|l| l.bias = vec![0.0; 2]),
            format!("{head}, bias: expected shape [4], found [2]")
        );
    }

    #[test]
    fn what_was_learned_takes_the_plan_s_place() {
        let plan = InputGrids::new(vec![8, 4], &[1.0, 2.0]).unwrap();
        let mut layer = layer();
        let as_planned = layer.quantized(&plan).unwrap();
        assert_eq!(as_planned.input.scale.as_slice::<f32>(), [1.0, 2.0]);
        layer.learned = Some(LearnedInput {
            scale: vec![0.5, 0.25],
            shift: vec![1.0; 8],
            multiplier: vec![1.0, 2.0, 1.0, 4.0],
            bias: vec![3.0; 4],
        });
        let learned = layer.quantized(&plan).unwrap();
        assert_eq!(learned.weight.as_slice::<f32>(), [-4.0, 3.5, -1.0, 0.0, 20.0, 22.0, -6.0, -2.0]);
        assert_eq!(
            (learned.input.bits.as_slice(), learned.input.scale.as_slice::<f32>()),
            ([8, 4].as_slice(), [0.5, 0.25].as_slice())
        );
        assert_eq!(learned.input.shift.unwrap().shape(), [2, 4]);
        assert_eq!(learned.bias.unwrap().shape(), [2, 2]);
        assert!(layer.quantized(&InputGrids::new(vec![8], &[1.0]).unwrap()).is_err());
    }
}
