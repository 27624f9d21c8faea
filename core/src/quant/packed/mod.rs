//! A quantized linear layer whose weight stays packed, for GPUs. What is multiplied are floating-point numbers, with weights
//! of a quarter of the bytes.

mod input;
mod matrix;
#[cfg(test)]
mod tests;

pub use input::InputQuantizer;
pub use matrix::PackedMatrix;

use mlx_rs::{Array, Dtype, ops};

use super::{InputGrids, activation_qmax, to_vec};
use crate::{Error, LinearCall, Result, RoundedLayer};

/// A linear layer with a packed weight. It computes what [`RoundedLayer::quantized`] simulates, in the element type of its
/// input.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    weight: PackedMatrix,
    /// Of each planned timestep.
    steps: Vec<Step>,
    /// `[in_features]`, or a single 1.
    multiplier: Array,
    /// Whether every token brings its own step size.
    dynamic: bool,
}

/// The input's grid at a timestep; arrays of f32 that broadcast to `[1, tokens, in_features]`.
#[derive(Debug, Clone)]
struct Step {
    scale: Array,
    low: Array,
    high: Array,
    shift: Array,
    /// What the rounder adds to the layer's own bias, `[1, 1, out_features]`, in the layer's type.
    bias: Option<Array>,
}

impl PackedLinear {
    /// The layer with these integers, on the plan's grids of its input except for what was learned of them, for inputs of
    /// this element type (`Float32`, `Float16` or `Bfloat16`), which step sizes and zero points of the weight are rounded to.
    ///
    /// # Errors
    /// If the layer is none that [`RoundedLayer::validate`] accepts.
    pub fn new(rounded: &RoundedLayer, plan: &InputGrids, dtype: Dtype) -> Result<Self> {
        let [outputs, inputs] = rounded.shape;
        let weight = PackedMatrix::new(rounded, dtype)?;
        let input = rounded.input(plan)?;
        let learned = rounded.learned.as_ref().map_or(&[][..], |l| &l.bias);
        let number = |value: f32| Array::from_slice(&[value], &[1, 1, 1]);
        let shifts = input.shift.as_ref().map(to_vec).transpose()?;
        let scales = to_vec(&input.scale)?;
        let steps = scales.iter().zip(&input.bits).enumerate().map(|(step, (&scale, &bits))| {
            let qmax = activation_qmax(bits)?;
            let row = |values: &[f32], width: usize| {
                Array::from_slice(&values[step * width..][..width], &[1, 1, width as i32])
            };
            let bias = (!learned.is_empty()).then(|| row(learned, outputs).as_dtype(dtype)).transpose()?;
            Ok(Step {
                scale: number(scale),
                low: number(-qmax - 1.0),
                high: number(qmax),
                shift: shifts.as_ref().map_or_else(|| number(0.0), |z| row(z, inputs)),
                bias,
            })
        });
        let steps = steps.collect::<Result<_>>()?;
        let multiplier = input.multiplier.unwrap_or_else(|| Array::from_slice(&[1.0_f32], &[1]));
        let layer = Self { weight, steps, multiplier, dynamic: input.dynamic };
        // Nothing of what it was made from is to be held on to.
        mlx_rs::transforms::eval(layer.arrays())?;
        Ok(layer)
    }

    /// Whether the weight is packed.
    pub fn is_packed(&self) -> bool {
        self.weight.is_packed()
    }

    /// Bytes that the layer occupies: weight, and the grids of its input.
    pub fn size(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let steps = self.steps.iter().flat_map(|s| {
            [Some(&s.scale), Some(&s.low), Some(&s.high), Some(&s.shift), s.bias.as_ref()]
                .into_iter()
                .flatten()
        });
        self.weight.arrays().chain(steps).chain([&self.multiplier])
    }

    /// The layer's output, `[batch, tokens, out_features]`; `steps` has the planned timestep of each row of the batch.
    ///
    /// # Errors
    /// [`Error::Shape`] if the input is not `[batch, tokens, in_features]` with a timestep for each row.
    pub fn forward(
        &self,
        call: &LinearCall<'_>,
        steps: &[usize],
        quantizer: &mut InputQuantizer,
    ) -> Result<Array> {
        let (x, inputs) = (call.input, call.layer.in_features as i32);
        let &[batch, _, width] = x.shape() else { return Err(self.refuse(call, steps)) };
        if width != inputs || batch as usize != steps.len() || steps.iter().any(|s| *s >= self.steps.len()) {
            return Err(self.refuse(call, steps));
        }
        let of = |field: fn(&Step) -> &Array| self.of_rows(steps, field);
        let (high, shift) = (of(|s| &s.high)?, of(|s| &s.shift)?);
        let scale = if self.dynamic { self.token_scales(x, &shift, &high)? } else { of(|s| &s.scale)? };
        let on_grid =
            quantizer.run(&[x.clone(), self.multiplier.clone(), scale, of(|s| &s.low)?, high, shift])?;
        let output = self.weight.multiply(&on_grid, call.bias)?;
        match self.steps.first().is_some_and(|s| s.bias.is_some()) {
            true => Ok(output.add(self.of_rows(steps, |s| s.bias.as_ref().unwrap_or(&s.scale))?)?),
            false => Ok(output),
        }
    }

    /// The step sizes that the tokens bring, `[batch, tokens, 1]`, as in [`InputGrids::dynamic`].
    fn token_scales(&self, x: &Array, shift: &Array, high: &Array) -> Result<Array> {
        let reach = x.as_dtype(Dtype::Float32)?.subtract(shift)?.divide(&self.multiplier)?;
        let scale = reach.abs()?.max_axes(&[-1], true)?.divide(high)?;
        // A token of zeros has any grid.
        Ok(ops::maximum(scale, Array::from_f32(f32::MIN_POSITIVE))?)
    }

    /// An array of each row's timestep: one for all where it is the same, which costs nothing.
    fn of_rows(&self, steps: &[usize], field: impl Fn(&Step) -> &Array) -> Result<Array> {
        let arrays: Vec<&Array> = steps.iter().map(|&s| field(&self.steps[s])).collect();
        match steps.iter().all(|s| Some(s) == steps.first()) {
            true => Ok(arrays[0].clone()),
            false => Ok(ops::concatenate(&arrays, 0)?),
        }
    }

    fn refuse(&self, call: &LinearCall<'_>, steps: &[usize]) -> Error {
        let (rows, inputs, planned) = (steps.len(), call.layer.in_features, self.steps.len());
        Error::Shape {
            what: format!("input of layer `{}`", call.layer.id),
            expected: format!("[{rows}, tokens, {inputs}], each row at one of {planned} planned timesteps"),
            found: call.input.shape().to_vec(),
        }
    }
}
