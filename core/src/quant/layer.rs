//! A quantized linear layer, simulated: a weight on its grid, an input on its grids.

use mlx_rs::{Array, Dtype, ops};

use super::{QDrop, RowGrids, activation_qmax, fake_quantize};
use crate::rows::take_rows;
use crate::{Error, LinearCall, Result};

/// The grids of one layer's input, by planned timestep: symmetric around the shift.
#[derive(Debug, Clone)]
pub struct InputGrids {
    /// Bits, `[steps]`.
    pub bits: Vec<u8>,
    /// Step sizes, `[steps]`, f32, finite and greater than 0.
    pub scale: Array,
    /// What is subtracted before quantizing and added after, `[steps, in_features]`; 0 if absent.
    pub shift: Option<Array>,
    /// What channels are divided by before they are quantized, `[in_features]`; 1 if absent. The weight's columns are
    /// multiplied by it (TaQ-DiT's migration, SmoothQuant).
    pub multiplier: Option<Array>,
    /// Whether every token brings a step size of its own, the largest magnitude of what is to be quantized over the largest
    /// integer, in place of the timestep's.
    pub dynamic: bool,
}

impl InputGrids {
    /// Grids without shift and multiplier; [`Error::Settings`] unless there is a step size, finite and greater than 0,
    /// and 2 to 8 bits for every timestep.
    pub fn new(bits: Vec<u8>, scale: &[f32]) -> Result<Self> {
        let wrong = |reason: String| Err(Error::settings("activation grid", reason));
        if bits.is_empty() || bits.len() != scale.len() {
            return wrong(format!("{} step sizes for {} timesteps", scale.len(), bits.len()));
        }
        bits.iter().try_for_each(|&b| activation_qmax(b).map(|_| ()))?;
        if let Some(step) = scale.iter().position(|s| !s.is_finite() || *s <= 0.0) {
            return wrong(format!(
                "scale of timestep {step} is {}, expected a finite number greater than 0",
                scale[step]
            ));
        }
        Ok(Self {
            scale: Array::from_slice(scale, &[scale.len() as i32]),
            bits,
            shift: None,
            multiplier: None,
            dynamic: false,
        })
    }

    /// Timesteps that there are grids for.
    pub fn steps(&self) -> usize {
        self.bits.len()
    }

    /// An input `[batch, …, in_features]`, over the multiplier, on its grids; `steps` has the planned timestep of each row of
    /// the batch.
    pub fn quantize(&self, input: &Array, steps: &[usize], drop: Option<QDrop>) -> Result<Array> {
        if self.dynamic {
            return self.quantize_tokens(input, steps, drop);
        }
        let bits: Vec<u8> = steps.iter().map(|&s| self.bits[s]).collect();
        let scale = take_rows(&self.scale, steps)?;
        let shift = self.shift.as_ref().map(|z| take_rows(z, steps)).transpose()?;
        let grids = RowGrids {
            scale: &scale,
            bits: &bits,
            shift: shift.as_ref(),
            multiplier: self.multiplier.as_ref(),
        };
        fake_quantize(input, grids, drop)
    }

    /// Every token as a row of its own.
    fn quantize_tokens(&self, input: &Array, steps: &[usize], drop: Option<QDrop>) -> Result<Array> {
        let channels = input.dim(-1);
        let rows = input.reshape(&[-1, channels])?;
        let tokens = rows.dim(0) as usize / steps.len().max(1);
        let steps: Vec<usize> = steps.iter().flat_map(|&s| std::iter::repeat_n(s, tokens)).collect();
        let bits: Vec<u8> = steps.iter().map(|&s| self.bits[s]).collect();
        let qmax = bits.iter().map(|&b| activation_qmax(b)).collect::<Result<Vec<f32>>>()?;
        let qmax = Array::from_slice(&qmax, &[steps.len() as i32]);
        let (mut reach, shift) = match &self.shift {
            Some(z) => {
                let z = take_rows(z, &steps)?;
                (rows.subtract(&z)?, Some(z))
            }
            None => (rows.clone(), None),
        };
        if let Some(m) = &self.multiplier {
            reach = reach.divide(m)?;
        }
        let scale = reach.abs()?.max_axes(&[-1], None)?.divide(qmax)?;
        // A token of zeros has any grid.
        let scale = ops::maximum(scale, Array::from_f32(f32::MIN_POSITIVE))?;
        let multiplier = self.multiplier.as_ref();
        let grids = RowGrids { scale: &scale, bits: &bits, shift: shift.as_ref(), multiplier };
        Ok(fake_quantize(&rows, grids, drop)?.reshape(input.shape())?)
    }
}

/// What a quantized layer computes with. Its arrays may be part of a graph that is being differentiated.
#[derive(Debug, Clone)]
pub struct QuantizedLayer {
    /// The weight that stands in for the full-precision one, `[out_features, in_features]`, its columns times the input's
    /// multiplier.
    pub weight: Array,
    /// The grids of its input.
    pub input: InputGrids,
    /// What is added to the bias, by planned timestep, `[steps, out_features]`.
    pub bias: Option<Array>,
}

impl QuantizedLayer {
    /// The same with a weight of another element type, for inputs that have it.
    pub fn as_dtype(mut self, dtype: Dtype) -> Result<Self> {
        self.weight = self.weight.as_dtype(dtype)?;
        Ok(self)
    }

    /// The layer's output, `[batch, tokens, out_features]`; `steps` has the planned timestep of each row.
    pub fn forward(&self, call: &LinearCall<'_>, steps: &[usize], drop: Option<QDrop>) -> Result<Array> {
        let output = call.compute_with(&self.input.quantize(call.input, steps, drop)?, &self.weight)?;
        match &self.bias {
            Some(bias) => {
                let bias = take_rows(bias, steps)?.expand_dims(1)?;
                Ok(output.add(bias.as_dtype(output.dtype())?)?)
            }
            None => Ok(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::to_vec;
    use super::*;
    use crate::{LayerSpec, Role, Stream};

    #[test]
    fn each_row_has_the_grid_and_the_bias_of_its_timestep() {
        let spec = LayerSpec {
            id: "l".into(),
            block: "b".into(),
            stream: Stream::Image,
            role: Role::Fc2,
            in_features: 2,
            out_features: 1,
            post_gelu: true,
        };
        let mut input = InputGrids::new(vec![4, 3], &[1.0, 0.5]).unwrap();
        input.shift = Some(Array::from_slice(&[0.25_f32, 0.0, 0.0, 0.0], &[2, 2]));
        input.multiplier = Some(Array::from_slice(&[1.0_f32, 2.0], &[2]));
        let layer = QuantizedLayer {
            weight: Array::from_slice(&[1.0_f32, 10.0], &[1, 2]),
            input,
            bias: Some(Array::from_slice(&[100.0_f32, 1000.0], &[2, 1])),
        };
        let x = Array::from_slice(&[1.4_f32, 2.9, 1.4, 2.9, 1.4, 2.9], &[3, 1, 2]);
        let bias = Array::from_slice(&[0.5_f32], &[1]);
        let call = LinearCall { layer: &spec, input: &x, weight: &x, bias: Some(&bias) };
        let y = layer.forward(&call, &[0, 1, 0], None).unwrap();
        // Step 0: 1.15 → 1 + 0.25, 2.9 / 2 → 1. Step 1: 1.4 → 1.5, 2.9 / 2 on a step of 0.5 → 1.5.
        assert_eq!(y.as_slice::<f32>(), [1.25 + 10.0 + 100.5, 1.5 + 15.0 + 1000.5, 111.75]);
    }

    #[test]
    fn every_token_may_bring_its_own_step_size() {
        let mut input = InputGrids::new(vec![3, 4], &[1.0, 1.0]).unwrap();
        input.shift = Some(Array::from_slice(&[1.0_f32, 0.0, 0.0, 0.0], &[2, 2]));
        input.multiplier = Some(Array::from_slice(&[1.0_f32, 2.0], &[2]));
        input.dynamic = true;
        // Two rows of two tokens. Less the shift and over the multiplier: (3, −1), (0, 0); (7, 1.6), (0.7, −0.2).
        let x = Array::from_slice(&[4.0_f32, -2.0, 1.0, 0.0, 7.0, 3.2, 0.7, -0.4], &[2, 2, 2]);
        let y = to_vec(&input.quantize(&x, &[0, 1], None).unwrap()).unwrap();
        // Steps of 3/3, none, 7/7 and 0.7/7: integers (3, −1), (0, 0), (7, 2), (7, −2).
        for (found, expected) in y.iter().zip([4.0, -1.0, 1.0, 0.0, 7.0, 2.0, 0.7, -0.2]) {
            assert!((found - expected).abs() < 1e-6, "{y:?}");
        }
    }

    #[test]
    fn grids_are_checked() {
        let message = |bits: Vec<u8>, scale: &[f32]| InputGrids::new(bits, scale).unwrap_err().to_string();
        assert_eq!(message(vec![8], &[1.0, 2.0]), "activation grid: 2 step sizes for 1 timesteps");
        assert!(message(vec![8, 8], &[1.0, 0.0]).contains("scale of timestep 1 is 0"));
        assert!(message(vec![8], &[f32::NAN]).contains("is NaN"));
        assert!(message(vec![9], &[1.0]).contains("bits = 9"));
    }
}
