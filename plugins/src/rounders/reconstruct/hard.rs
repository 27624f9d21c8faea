//! A weight whose integers are fixed; its step sizes can still be learned.

use rayon::prelude::*;
use taq_core::RoundedLayer;

use super::adam::{Adam, Variables};

/// Step sizes as s · e^θ, so that they stay positive and one learning rate suits all of them.
pub(in crate::rounders) struct HardWeight {
    rounded: RoundedLayer,
    start: Vec<f32>,
    theta: Variables,
    values: Vec<f32>,
}

impl HardWeight {
    pub(in crate::rounders) fn new(rounded: RoundedLayer) -> Self {
        let theta = Variables::new(vec![0.0; rounded.scale.len()]);
        Self { start: rounded.scale.clone(), theta, values: rounded.values(), rounded }
    }

    /// The weights with the present step sizes, row-major.
    pub(in crate::rounders) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The integers with the present step sizes.
    pub(in crate::rounders) fn rounded(&self) -> &RoundedLayer {
        &self.rounded
    }

    /// One step of Adam on θ with the loss' gradient with respect to the weights; false if that is not finite.
    pub(in crate::rounders) fn step(&mut self, adam: Adam, gradient: &[f32]) -> bool {
        let group_len = self.values.len() / self.start.len();
        let slopes: Vec<f32> = self
            .values
            .par_chunks(group_len)
            .zip(gradient.par_chunks(group_len))
            .map(|(w, g)| w.iter().zip(g).map(|(w, g)| f64::from(w * g)).sum::<f64>() as f32)
            .collect();
        if !slopes.iter().all(|s| s.is_finite()) {
            return false;
        }
        self.theta.step(adam, &slopes);
        for ((scale, start), theta) in self.rounded.scale.iter_mut().zip(&self.start).zip(&self.theta.values)
        {
            *scale = start * theta.exp();
        }
        self.values = self.rounded.values();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taq_core::LearnedInput;
    use taq_core::quant::{Granularity, Grid};

    #[test]
    fn step_sizes_go_where_the_error_falls() {
        // The target is the weight with other step sizes: they are found.
        let layer = RoundedLayer {
            grid: Grid::new(4, Granularity::Group(2), true).unwrap(),
            shape: [2, 4],
            weight_int: vec![-8, 7, 0, 1, 2, 3, 4, 5],
            scale: vec![0.5, 1.0, 2.0, 4.0],
            zero_point: vec![0; 4],
            learned: Some(LearnedInput {
                scale: vec![1.0],
                multiplier: vec![1.0, 2.0, 1.0, 4.0],
                ..Default::default()
            }),
        };
        let target = RoundedLayer { scale: vec![0.6, 0.9, 2.1, 4.4], ..layer.clone() };
        let mut hard = HardWeight::new(layer);
        for iteration in 1..=2000 {
            let gradient: Vec<f32> =
                hard.values().iter().zip(target.values()).map(|(a, b)| 2.0 * (a - b)).collect();
            assert!(hard.step(Adam::new(0.005, iteration), &gradient));
        }
        for (found, expected) in hard.rounded().scale.iter().zip(&target.scale) {
            assert!((found / expected - 1.0).abs() < 1e-3, "{found}, expected {expected}");
        }
        assert_eq!(hard.rounded().weight_int, target.weight_int);
        assert!(!hard.step(Adam::new(0.1, 1), &[f32::NAN; 8]));
    }
}
