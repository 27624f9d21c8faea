//! A weight whose integers are fixed; its step sizes can still be learned.

use mlx_rs::{Array, Dtype};
use taq_core::quant::{is_finite, to_vec};
use taq_core::{Result, RoundedLayer};

use super::adam::{Adam, Variables};

/// Step sizes as s · e^θ, so that they stay positive and one learning rate suits all of them.
pub(in crate::rounders) struct HardWeight {
    rounded: RoundedLayer,
    /// Integers less zero points, `[groups, weights of a group]`, f32.
    integers: Array,
    /// `[groups, 1]`.
    start: Array,
    theta: Variables,
}

impl HardWeight {
    pub(in crate::rounders) fn new(rounded: RoundedLayer) -> Result<Self> {
        let groups = rounded.scale.len() as i32;
        let whole = [groups, rounded.weight_int.len() as i32 / groups];
        let integers = Array::from_slice(&rounded.weight_int, &whole).as_dtype(Dtype::Float32)?;
        let start = Array::from_slice(&rounded.scale, &[groups, 1]);
        let zero = Array::from_slice(&rounded.zero_point, &[groups, 1]);
        let theta = Variables::new(mlx_rs::ops::zeros_like(&start)?)?;
        Ok(Self { integers: integers.subtract(zero)?, rounded, start, theta })
    }

    fn scale(&self) -> Result<Array> {
        Ok(self.start.multiply(self.theta.values.exp()?)?)
    }

    /// The weights with the present step sizes, `[out_features, in_features]`.
    pub(in crate::rounders) fn values(&self) -> Result<Array> {
        let values = self.integers.multiply(self.scale()?)?;
        Ok(values.reshape(&self.rounded.shape.map(|n| n as i32))?)
    }

    /// The integers with the present step sizes.
    pub(in crate::rounders) fn rounded(&self) -> Result<RoundedLayer> {
        Ok(RoundedLayer { scale: to_vec(&self.scale()?)?, ..self.rounded.clone() })
    }

    /// What has to be evaluated.
    pub(in crate::rounders) fn arrays(&self) -> [&Array; 3] {
        self.theta.arrays()
    }

    /// One step of Adam on θ with the loss' gradient with respect to the weights.
    pub(in crate::rounders) fn step(&mut self, adam: Adam, gradient: &Array) -> Result<()> {
        let gradient = gradient.reshape(self.integers.shape())?;
        let slopes = gradient.multiply(&self.integers)?.sum_axis(1, true)?.multiply(self.scale()?)?;
        self.theta.step(adam, &slopes)
    }

    /// False once a gradient was not finite.
    pub(in crate::rounders) fn is_finite(&self) -> Result<bool> {
        is_finite(&self.theta.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taq_core::quant::{Granularity, Grid};

    #[test]
    fn step_sizes_go_where_the_error_falls() {
        // The target is the weight with other step sizes: they are found.
        let layer = RoundedLayer {
            grid: Grid::new(4, Granularity::Group(2), false).unwrap(),
            shape: [2, 4],
            weight_int: vec![-8, 7, 0, 1, 2, 3, 4, 5],
            scale: vec![0.5, 1.0, 2.0, 4.0],
            zero_point: vec![0.0, 0.0, 1.0, -3.5],
            learned: None,
        };
        let target = RoundedLayer { scale: vec![0.6, 0.9, 2.1, 4.4], ..layer.clone() };
        let target_values = target.dequantize().unwrap();
        let mut hard = HardWeight::new(layer).unwrap();
        for iteration in 1..=2000 {
            let gradient = hard.values().unwrap().subtract(&target_values).unwrap();
            hard.step(Adam::new(0.005, iteration), &gradient).unwrap();
            mlx_rs::transforms::eval(hard.arrays()).unwrap();
        }
        let found = hard.rounded().unwrap();
        for (found, expected) in found.scale.iter().zip(&target.scale) {
            assert!((found / expected - 1.0).abs() < 1e-3, "{found}, expected {expected}");
        }
        assert_eq!(found.weight_int, target.weight_int);
        assert_eq!(found.dequantize().unwrap().as_slice::<f32>(), hard.values().unwrap().as_slice::<f32>());
        assert!(hard.is_finite().unwrap());
        hard.step(Adam::new(0.1, 1), &Array::from_slice(&[f32::NAN; 8], &[2, 4])).unwrap();
        assert!(!hard.is_finite().unwrap());
    }
}
