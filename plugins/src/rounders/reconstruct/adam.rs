//! Adam (Kingma and Ba, arXiv 1412.6980; decay rates and guard as torch's defaults), one step at a time as a node of MLX's
//! graph.

use mlx_host::{HostKernel, on_cpu};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use taq_core::Result;

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
/// Against division by zero.
const EPSILON: f32 = 1e-8;

/// The constants of one step, with the corrections for moments that started at 0.
#[derive(Debug, Clone, Copy)]
pub(in crate::rounders) struct Adam {
    /// Learning rate over the correction of the mean.
    pub(super) rate: f32,
    /// One over the root of the correction of the squares.
    pub(super) root: f32,
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
    pub(super) fn update(self, v: f32, first: &mut f32, second: &mut f32, gradient: f32) -> f32 {
        *first = BETA_1 * *first + (1.0 - BETA_1) * gradient;
        *second = BETA_2 * *second + (1.0 - BETA_2) * gradient * gradient;
        v - self.rate * *first / (second.sqrt() * self.root + EPSILON)
    }
}

/// [`Adam::update`] on arrays: the variable and its moments after the step. `rate` and `root` are scalars.
pub(super) fn update(
    [v, first, second]: [&Array; 3],
    gradient: &Array,
    rate: &Array,
    root: &Array,
) -> Result<[Array; 3], Exception> {
    let number = Array::from_f32;
    let mean = |old: &Array, beta: f32, new: &Array| {
        old.multiply(number(beta))?.add(new.multiply(number(1.0 - beta))?)
    };
    let first = mean(first, BETA_1, gradient)?;
    let second = mean(second, BETA_2, &gradient.square()?)?;
    let size = second.sqrt()?.multiply(root)?.add(number(EPSILON))?;
    let v = v.subtract(first.multiply(rate)?.divide(&size)?)?;
    Ok([v, first, second])
}

/// Variables with their moments.
#[derive(Debug, Clone)]
pub(in crate::rounders) struct Variables {
    /// The values.
    pub(in crate::rounders) values: Array,
    first: Array,
    second: Array,
}

impl Variables {
    /// Variables at these values, at rest.
    pub(in crate::rounders) fn new(values: Array) -> Result<Self> {
        let zeros = mlx_rs::ops::zeros_like(&values)?;
        Ok(Self { values, first: zeros.clone(), second: zeros })
    }

    /// Forgets the moments.
    pub(in crate::rounders) fn rest(&mut self) -> Result<()> {
        *self = Self::new(self.values.clone())?;
        Ok(())
    }

    /// One step against the gradients.
    pub(in crate::rounders) fn step(&mut self, adam: Adam, gradients: &Array) -> Result<()> {
        let state = [&self.values, &self.first, &self.second];
        let next = if on_cpu() {
            let kernel = HostKernel::new("adam", move |inputs, outputs| {
                let [v, first, second] = outputs else { unreachable!("three outputs") };
                let moments = first.f32().iter_mut().zip(second.f32());
                for ((v, (first, second)), &gradient) in v.f32().iter_mut().zip(moments).zip(inputs[0].f32())
                {
                    *v = adam.update(*v, first, second, gradient);
                }
            });
            kernel.call_in_place(&state, &[gradients], &[])?
        } else {
            update(state, gradients, &Array::from_f32(adam.rate), &Array::from_f32(adam.root))?.to_vec()
        };
        let [values, first, second] = next.try_into().unwrap_or_else(|_| unreachable!("three outputs"));
        *self = Self { values, first, second };
        Ok(())
    }

    /// What has to be evaluated.
    pub(in crate::rounders) fn arrays(&self) -> [&Array; 3] {
        [&self.values, &self.first, &self.second]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_paper() {
        // Algorithm 1 in f64, on the gradient of (v − 3)².
        let mut ours = Variables::new(Array::from_slice(&[1.0_f32], &[1])).unwrap();
        let mut composed = ours.clone();
        let (mut v, mut m, mut u) = (1.0_f64, 0.0_f64, 0.0_f64);
        for t in 1..=50 {
            let gradient = 2.0 * (v - 3.0);
            m = 0.9 * m + 0.1 * gradient;
            u = 0.999 * u + 0.001 * gradient * gradient;
            v -= 0.1 * (m / (1.0 - 0.9_f64.powi(t))) / ((u / (1.0 - 0.999_f64.powi(t))).sqrt() + 1e-8);
            let slope = |v: &Array| v.subtract(Array::from_f32(3.0)).unwrap().multiply(Array::from_f32(2.0));
            let adam = Adam::new(0.1, t as usize);
            let gradient = slope(&ours.values).unwrap();
            ours.step(adam, &gradient).unwrap();
            let gradient = slope(&composed.values).unwrap();
            let (rate, root) = (Array::from_f32(adam.rate), Array::from_f32(adam.root));
            let [values, first, second] = update(composed.arrays(), &gradient, &rate, &root).unwrap();
            composed = Variables { values, first, second };
            for found in [&ours, &composed] {
                let found = f64::from(found.values.as_slice::<f32>()[0]);
                assert!((found - v).abs() < 1e-4, "{t}: {found} {v}");
            }
        }
    }
}
