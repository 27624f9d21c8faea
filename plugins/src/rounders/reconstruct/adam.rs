//! Adam (Kingma and Ba, arXiv 1412.6980; decay rates and guard as torch's defaults).

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
/// Against division by zero.
const EPSILON: f32 = 1e-8;

/// The constants of one step, with the corrections for moments that started at 0.
#[derive(Debug, Clone, Copy)]
pub(in crate::rounders) struct Adam {
    rate: f32,
    root: f32,
}

impl Adam {
    /// Step number `iteration`, from 1.
    pub(in crate::rounders) fn new(lr: f32, iteration: usize) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(iteration as f64);
        Self {
            rate: (f64::from(lr) / correction(BETA_1)) as f32,
            root: (1.0 / correction(BETA_2).sqrt()) as f32,
        }
    }

    /// The variable after the step; the moments are updated.
    #[inline(always)]
    pub(in crate::rounders) fn update(self, v: f32, first: &mut f32, second: &mut f32, gradient: f32) -> f32 {
        *first = BETA_1 * *first + (1.0 - BETA_1) * gradient;
        *second = BETA_2 * *second + (1.0 - BETA_2) * gradient * gradient;
        v - self.rate * *first / (second.sqrt() * self.root + EPSILON)
    }
}

/// Variables with their moments.
#[derive(Debug, Clone)]
pub(in crate::rounders) struct Variables {
    /// The values.
    pub(in crate::rounders) values: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Variables {
    /// Variables at these values, at rest.
    pub(in crate::rounders) fn new(values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        Self { values, first: zeros.clone(), second: zeros }
    }

    /// One step against the gradients.
    pub(in crate::rounders) fn step(&mut self, adam: Adam, gradients: &[f32]) {
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((v, (first, second)), &gradient) in self.values.iter_mut().zip(moments).zip(gradients) {
            *v = adam.update(*v, first, second, gradient);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_paper() {
        // Algorithm 1 in f64, on the gradient of (v − 3)².
        let mut ours = Variables::new(vec![1.0]);
        let (mut v, mut m, mut u) = (1.0_f64, 0.0_f64, 0.0_f64);
        for t in 1..=50 {
            let gradient = 2.0 * (v - 3.0);
            m = 0.9 * m + 0.1 * gradient;
            u = 0.999 * u + 0.001 * gradient * gradient;
            v -= 0.1 * (m / (1.0 - 0.9_f64.powi(t))) / ((u / (1.0 - 0.999_f64.powi(t))).sqrt() + 1e-8);
            let gradient = 2.0 * (ours.values[0] - 3.0);
            ours.step(Adam::new(0.1, t as usize), &[gradient]);
            assert!((f64::from(ours.values[0]) - v).abs() < 1e-4, "{t}: {} {v}", ours.values[0]);
        }
    }
}
