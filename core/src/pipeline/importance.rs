//! How much the model's output feels each channel of a block's output: the diagonal of the Fisher information.
//!
//! BRECQ (Li et al., arXiv 2102.05426, section 3.3; yhhhli/BRECQ `quant/data_utils.py`) weights a block's squared error by
//! the squared gradient of the task's loss. Here the task is the velocity v itself, so that the weight is the diagonal of
//! JᵀJ for J = ∂v/∂(block's output). With r of independent signs, E[(Jᵀr)²] is that diagonal (Bekas et al., 2007), and one
//! backward pass gives Jᵀr at every block. Averaged over tokens and over the rows of a timestep, there remains one weight
//! per timestep and channel.

use mlx_rs::{Array, ops, random, transforms};

use super::boundary::{Boundary, block_forward};
use super::gradient::{random_signs, value_and_gradients};
use super::quantized::ActivationPlan;
use crate::quant::to_vec;
use crate::rows::take_rows;
use crate::{BlockIo, Error, Identity, Model, Result};

/// Rows that are looked at.
const ROWS: usize = 256;
/// Rows in one backward pass.
const CHUNK: usize = 16;

/// Weights of one block's outputs, 1 on average.
#[derive(Clone)]
pub(super) struct Importance {
    /// `[steps, width]`.
    hidden: Array,
    /// `[steps, width]`; `None` after the last block.
    context: Option<Array>,
}

impl Importance {
    /// The squared differences of a stream, weighted; `steps` has the planned timestep of each row.
    pub fn weigh(weights: &Array, squares: &Array, steps: &[usize]) -> Result<Array> {
        Ok(squares.multiply(take_rows(weights, steps)?.expand_dims(1)?)?)
    }

    /// Weights of image tokens.
    pub fn hidden(&self) -> &Array {
        &self.hidden
    }

    /// Weights of text tokens.
    pub fn context(&self) -> Option<&Array> {
        self.context.as_ref()
    }

    /// Measures the weights of every block's output in the full-precision model, from what the first block sees.
    pub fn measure(
        model: &dyn Model,
        plan: &ActivationPlan,
        embedded: &Boundary,
        learn: usize,
        latent: (usize, usize),
        seed: u64,
    ) -> Result<Vec<Self>> {
        let blocks = model.spec().blocks.len();
        let mut sums: Vec<[Sum; 2]> = vec![Default::default(); blocks];
        let rows: Vec<usize> = (0..learn.min(ROWS)).collect();
        for (chunk, rows) in rows.chunks(CHUNK).enumerate() {
            let io = embedded.rows(rows)?;
            let steps: Vec<usize> = io.timesteps.iter().map(|&t| plan.step(t)).collect();
            let key = random::key(seed ^ (chunk as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))?;
            for (block, gradients) in gradients(model, &io, latent, &key)?.into_iter().enumerate() {
                for (sum, gradient) in sums[block].iter_mut().zip(gradients) {
                    let Some(gradient) = gradient else { continue };
                    let squares = gradient.square()?.mean_axis(1, None)?;
                    sum.add(&to_vec(&squares)?, &steps, plan.timesteps.len(), gradient.dim(1) as usize);
                }
            }
        }
        sums.into_iter().map(Self::normalized).collect()
    }

    fn normalized([hidden, context]: [Sum; 2]) -> Result<Self> {
        // Weighted by the number of elements of each stream.
        let (h, c) = (hidden.mean(), context.mean());
        let tokens = (hidden.tokens + context.tokens).max(1) as f64;
        let mean = (h * hidden.tokens as f64 + c * context.tokens as f64) / tokens;
        if !(mean.is_finite() && mean > 0.0) {
            return Err(Error::NotFinite { what: "Fisher information of a block's output".into() });
        }
        let context = if context.tokens > 0 { Some(context.weights(mean)) } else { None };
        Ok(Self { hidden: hidden.weights(mean), context })
    }
}

/// (Jᵀr) at every block's image and text output.
fn gradients(
    model: &dyn Model,
    io: &BlockIo,
    latent: (usize, usize),
    key: &Array,
) -> Result<Vec<[Option<Array>; 2]>> {
    // What is added to every block's outputs, at 0.
    let blocks = model.spec().blocks.len();
    let mut exact = io.clone();
    let mut zeros = Vec::new();
    let mut streams = Vec::new();
    let forward = |block: usize, io: &BlockIo| block_forward(model, block, io, &mut Identity);
    for block in 0..blocks {
        exact = forward(block, &exact)?;
        zeros.push(ops::zeros_like(&exact.hidden)?);
        zeros.extend(exact.context.as_ref().map(ops::zeros_like).transpose()?);
        streams.push(1 + usize::from(exact.context.is_some()));
    }
    let run = |added: &[Array]| -> Result<Array> {
        let mut added = added.iter();
        let mut io = io.clone();
        for block in 0..blocks {
            io = forward(block, &io)?;
            let mut add = |x: &Array| Ok::<_, Error>(added.next().map_or(Ok(x.clone()), |a| x.add(a))?);
            io.hidden = add(&io.hidden)?;
            io.context = io.context.as_ref().map(&mut add).transpose()?;
        }
        let velocity = model.unembed(&io, latent, &mut Identity)?;
        Ok(velocity.multiply(random_signs(velocity.shape(), key)?)?.sum(None)?)
    };
    let (_, grads) = value_and_gradients(&zeros, run)?;
    transforms::eval(&grads)?;
    let mut grads = grads.into_iter();
    Ok(streams.iter().map(|&n| [grads.next(), if n > 1 { grads.next() } else { None }]).collect())
}

/// Sums of squares of one stream by timestep and channel.
#[derive(Clone, Default)]
struct Sum {
    /// Row-major `[steps, width]`.
    squares: Vec<f64>,
    rows: Vec<usize>,
    tokens: usize,
}

impl Sum {
    fn add(&mut self, squares: &[f32], steps: &[usize], all_steps: usize, tokens: usize) {
        let width = squares.len() / steps.len();
        self.squares.resize(all_steps * width, 0.0);
        self.rows.resize(all_steps, 0);
        self.tokens = tokens;
        for (&step, squares) in steps.iter().zip(squares.chunks(width)) {
            self.rows[step] += 1;
            let sums = &mut self.squares[step * width..(step + 1) * width];
            sums.iter_mut().zip(squares).for_each(|(sum, &s)| *sum += f64::from(s));
        }
    }

    /// Mean over all rows and channels.
    fn mean(&self) -> f64 {
        let rows = self.rows.iter().sum::<usize>();
        let width = self.squares.len() / self.rows.len().max(1);
        self.squares.iter().sum::<f64>() / ((rows * width).max(1) as f64)
    }

    /// Means by timestep and channel over `mean`; a timestep without rows has the mean of all.
    fn weights(&self, mean: f64) -> Array {
        let steps = self.rows.len();
        let width = self.squares.len() / steps.max(1);
        let all = self.rows.iter().sum::<usize>().max(1) as f64;
        let over_all =
            |channel: usize| (0..steps).map(|step| self.squares[step * width + channel]).sum::<f64>() / all;
        let overall: Vec<f64> = (0..width).map(over_all).collect();
        let weight = |i: usize| match self.rows[i / width] {
            0 => overall[i % width],
            rows => self.squares[i] / rows as f64,
        };
        let weights: Vec<f32> = (0..steps * width).map(|i| (weight(i) / mean) as f32).collect();
        Array::from_slice(&weights, &[steps as i32, width as i32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_means_by_timestep() {
        let mut sum = Sum::default();
        sum.add(&[1.0, 3.0, 2.0, 6.0, 3.0, 9.0], &[0, 2, 2], 3, 7);
        assert_eq!(sum.mean(), 4.0);
        let weights = sum.weights(2.0);
        assert_eq!(weights.shape(), [3, 2]);
        assert_eq!(weights.as_slice::<f32>(), [0.5, 1.5, 1.0, 3.0, 1.25, 3.75]);
    }
}
