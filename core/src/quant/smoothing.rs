//! SmoothQuant (Xiao et al., arXiv 2211.10438): channels in which the input is large are divided by a factor that the weight's
//! columns are multiplied by, `y = (x / m)(W · m)ᵀ + b`, so that both sides are easier to quantize.
//!
//! A rounder is shown the smoothed layer, x / m and W · m, and need not know of it. What it makes of it becomes part of the
//! layer's grids ([`InputGrids::multiplier`]): with a step size s, shift z and multiplier m′ of its own,
//!
//! ```text
//! (x / m − z) / (s m′) = (x − z m) / (s m m′)        s q + z / m′ = s q + z m / (m m′)
//! ```
//!
//! so that smoothing costs nothing when the model runs: inputs are divided by s m m′ in place of s m′.

use mlx_rs::Array;

use super::{InputGrids, QuantizedLayer, to_vec};
use crate::{Error, LearnedInput, Result, RoundedLayer};

/// The factors m of one layer, `[in_features]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Smoothing(Vec<f32>);

impl Smoothing {
    /// These factors; [`Error::Settings`] unless all are finite and greater than 0.
    pub fn new(factors: Vec<f32>) -> Result<Self> {
        match factors.iter().find(|m| !m.is_finite() || **m <= 0.0) {
            Some(m) => Err(Error::settings(
                "SmoothQuant",
                format!("a factor is {m}, expected a finite number greater than 0"),
            )),
            None => Ok(Self(factors)),
        }
    }

    /// The paper's equation 4: `max|x|^α / max|w|^(1 − α)` by channel; 1 where either is 0.
    pub fn of(alpha: f32, input_absmax: &[f32], weight_absmax: &[f32]) -> Result<Self> {
        let factor = |(&x, &w): (&f32, &f32)| match x > 0.0 && w > 0.0 {
            true => (f64::from(x).powf(alpha.into()) / f64::from(w).powf(1.0 - f64::from(alpha))) as f32,
            false => 1.0,
        };
        Self::new(input_absmax.iter().zip(weight_absmax).map(factor).collect())
    }

    /// The factors, `[in_features]`.
    pub fn factors(&self) -> &[f32] {
        &self.0
    }

    fn array(&self) -> Array {
        Array::from_slice(&self.0, &[self.0.len() as i32])
    }

    /// The smoothed input, `[…, in_features]`.
    pub fn input(&self, x: &Array) -> Result<Array> {
        Ok(x.divide(self.array())?)
    }

    /// The smoothed weight, `[out_features, in_features]`.
    pub fn weight(&self, weight: &Array) -> Result<Array> {
        Ok(weight.multiply(self.array())?)
    }

    /// A layer that was made for the smoothed input, for the layer's own input.
    pub fn layer(&self, layer: QuantizedLayer) -> Result<QuantizedLayer> {
        let m = self.array();
        let multiplier = match &layer.input.multiplier {
            Some(own) => own.multiply(&m)?,
            None => m.clone(),
        };
        let shift = layer.input.shift.as_ref().map(|z| z.multiply(&m)).transpose()?;
        let input = InputGrids { multiplier: Some(multiplier), shift, ..layer.input };
        Ok(QuantizedLayer { input, ..layer })
    }

    /// The integers of the smoothed weight, as those of the layer; `plan` is the plan's grids of its input.
    pub fn rounded(&self, layer: RoundedLayer, plan: &InputGrids) -> Result<RoundedLayer> {
        let learned = match layer.learned {
            Some(learned) => learned,
            None => LearnedInput { scale: to_vec(&plan.scale)?, ..LearnedInput::default() },
        };
        let multiplier = match learned.multiplier.is_empty() {
            true => self.0.clone(),
            false => learned.multiplier.iter().zip(&self.0).map(|(own, m)| own * m).collect(),
        };
        let shift = learned.shift.iter().zip(self.0.iter().cycle()).map(|(z, m)| z * m).collect();
        Ok(RoundedLayer { learned: Some(LearnedInput { multiplier, shift, ..learned }), ..layer })
    }

    /// What [`Self::rounded`] made, as the rounder made it.
    pub fn unrounded(&self, layer: RoundedLayer) -> RoundedLayer {
        let learned = layer.learned.map(|learned| {
            let multiplier = learned.multiplier.iter().zip(&self.0).map(|(all, m)| all / m).collect();
            let shift = learned.shift.iter().zip(self.0.iter().cycle()).map(|(z, m)| z / m).collect();
            LearnedInput { multiplier, shift, ..learned }
        });
        RoundedLayer { learned, ..layer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::relative_l2_arrays;
    use crate::quant::{Clipping, Grid, nearest};
    use crate::{LayerSpec, LinearCall, Role, Stream};

    const M: [f32; 4] = [4.0, 0.5, 1.0, 3.0];

    #[test]
    fn factors_are_those_of_the_paper() {
        let found = Smoothing::of(0.5, &[16.0, 2.0, 0.0, 1.0], &[1.0, 0.5, 3.0, 0.0]).unwrap();
        assert_eq!(found.factors(), [4.0, 2.0, 1.0, 1.0]);
        let inputs = Smoothing::of(1.0, &[16.0, 2.0], &[1.0, 0.5]).unwrap();
        assert_eq!(inputs.factors(), [16.0, 2.0]);
        let weights = Smoothing::of(0.0, &[16.0, 2.0], &[1.0, 0.5]).unwrap();
        assert_eq!(weights.factors(), [1.0, 2.0]);
        assert!(Smoothing::new(vec![1.0, f32::NAN]).unwrap_err().to_string().contains("is NaN"));
        assert!(Smoothing::new(vec![0.0]).is_err());
    }

    /// Two channels in a hundred are a hundred times as large: eight bits lose the others, unless they are smoothed.
    #[test]
    fn smoothing_helps_where_few_channels_are_large() {
        let (inputs, outputs, tokens) = (128_usize, 16_usize, 64_usize);
        let number = |i: usize| (((i as u32).wrapping_mul(0x9e37_79b1) >> 8) as f32 / 8_388_608.0) - 1.0;
        let large = |c: usize| if c % 50 == 7 { 100.0 } else { 1.0 };
        let x: Vec<f32> = (0..tokens * inputs).map(|i| number(i) * large(i % inputs)).collect();
        let weight: Vec<f32> = (0..outputs * inputs).map(|i| number(i + 77_777) / 10.0).collect();
        let absmax = |values: &[f32]| -> Vec<f32> {
            (0..inputs)
                .map(|c| values.iter().skip(c).step_by(inputs).fold(0.0, |m, v| v.abs().max(m)))
                .collect()
        };
        let smoothing = Smoothing::of(0.5, &absmax(&x), &absmax(&weight)).unwrap();
        let x = Array::from_slice(&x, &[1, tokens as i32, inputs as i32]);
        let weight = Array::from_slice(&weight, &[outputs as i32, inputs as i32]);
        let exact = mlx_host::linear(&x, &weight, None).unwrap();
        let error = |x: &Array, weight: &Array| {
            let reach = to_vec(&x.abs().unwrap().max(None).unwrap()).unwrap()[0];
            let grids = InputGrids::new(vec![8], &[reach / 127.0]).unwrap();
            let x = grids.quantize(x, &[0], None).unwrap();
            let rounded = nearest(weight, &Grid::channel(8).unwrap(), Clipping::Absmax).unwrap();
            let y = mlx_host::linear(&x, &rounded.dequantize().unwrap(), None).unwrap();
            relative_l2_arrays(&y, &exact).unwrap()
        };
        let plain = error(&x, &weight);
        let smoothed = error(&smoothing.input(&x).unwrap(), &smoothing.weight(&weight).unwrap());
        assert!(smoothed < 0.5 * plain, "{smoothed:e}, {plain:e} without");
    }

    /// A layer with everything a rounder may learn, on the smoothed input and on the layer's own.
    #[test]
    fn the_layer_computes_the_same_as_on_the_smoothed_input() {
        let smoothing = Smoothing::new(M.to_vec()).unwrap();
        let x: Vec<f32> = (0..24).map(|i| ((i * 37 % 23) as f32 - 11.0) * M[i % 4] / 5.0).collect();
        let x = Array::from_slice(&x, &[2, 3, 4]);
        let weight = Array::from_slice(&[0.3_f32, -1.0, 0.7, 0.2, 0.9, 0.4, -0.6, 0.1], &[2, 4]);
        let smoothed = (smoothing.input(&x).unwrap(), smoothing.weight(&weight).unwrap());
        let plain = |x: &Array, w: &Array| mlx_host::linear(x, w, None).unwrap();
        let off = relative_l2_arrays(&plain(&smoothed.0, &smoothed.1), &plain(&x, &weight)).unwrap();
        assert!(off < 1e-6, "{off:e}");

        let spec = LayerSpec {
            id: "l".into(),
            block: "b".into(),
            stream: Stream::Image,
            role: Role::Q,
            in_features: 4,
            out_features: 2,
            post_gelu: false,
        };
        let call = |input| LinearCall { layer: &spec, input, weight: &weight, bias: None };
        let plan = InputGrids::new(vec![8, 6], &[0.02, 0.1]).unwrap();
        let mut rounded = nearest(&smoothed.1, &Grid::channel(4).unwrap(), Clipping::Absmax).unwrap();
        let learned = LearnedInput {
            scale: vec![0.03, 0.09],
            shift: vec![0.1, -0.2, 0.3, 0.0, 0.05, 0.0, 0.4, -0.1],
            multiplier: vec![1.0, 2.0, 4.0, 1.0],
            bias: vec![0.5, 0.1, -0.3, 0.7],
        };
        for learned in [None, Some(learned)] {
            rounded.learned = learned;
            let seen = rounded.quantized(&plan).unwrap();
            let expected = seen.forward(&call(&smoothed.0), &[0, 1], None).unwrap();
            let whole = smoothing.rounded(rounded.clone(), &plan).unwrap();
            whole.validate(&spec, 2).unwrap();
            for layer in [whole.quantized(&plan).unwrap(), smoothing.layer(seen).unwrap()] {
                let found = layer.forward(&call(&x), &[0, 1], None).unwrap();
                let off = relative_l2_arrays(&found, &expected).unwrap();
                assert!(off < 1e-6, "{off:e}");
            }
            let again = smoothing.unrounded(whole).quantized(&plan).unwrap();
            let again = again.forward(&call(&smoothed.0), &[0, 1], None).unwrap();
            assert!(relative_l2_arrays(&again, &expected).unwrap() < 1e-6);
        }
    }
}
