//! AdaRound, block by block: learns for every weight whether to round it up or down, all layers of a block
//! jointly, so that the block's output changes least.
//!
//! Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization* (arXiv 2004.10568); blocks as in
//! BRECQ (Li et al., arXiv 2102.05426; yhhhli/BRECQ `quant/block_recon.py`). A weight becomes
//!
//! ```text
//! ŵ = s · (clamp(⌊w/s⌋ + z + h(V), qmin, qmax) − z),   h(V) = clip(1.2 · sigmoid(V) − 0.1, 0, 1)
//! ```
//!
//! V starts where ŵ = w, Adam moves it, a regulariser drives h to 0 or 1, and at the end V ≥ 0 rounds up.
//!
//! # The weight of the regulariser
//!
//! The papers minimise (squared error, summed over channels) + λ · Σ (1 − |2h − 1|^β), so that their balance
//! between error and regulariser changes with the width of a layer, the number of its weights and the size of
//! its outputs. Here each weight descends
//!
//! ```text
//! (∂MSE/∂h) / r + lambda · d(1 − |2h − 1|^β)/dh
//! ```
//!
//! where MSE is the mean over the block's outputs and r, one number per layer, is the root mean square over the
//! layer's weights of ∂MSE/∂h (= s · ∂MSE/∂ŵ) where all layers are rounded to nearest, on the first batch. So
//! `lambda` is the regulariser's pull on one weight in units of the error's typical pull on one weight of the same
//! layer, whatever its size and scale. The papers' λ corresponds to λ / (r · C) for C output channels. As Adam is
//! indifferent to the gradient's size, dividing by r changes nothing else.

mod batches;
mod learner;
mod math;
mod soft;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use mlx_rs::Array;
use mlx_rs::error::Exception;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::Clipping;
use taq_core::{
    BlockJob, Context, Error, LOSS_STRIDE, Result, RoundedBlock, RoundedLayer, Rounder, register,
};

use batches::Batches;
use learner::{Learner, Step};
pub use soft::BetaSchedule;

/// Iterations between two reports of progress.
const REPORT_STRIDE: usize = 10;

/// Settings of `adaround`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdaRoundSettings {
    /// Steps of the optimiser for each block.
    #[schemars(range(min = 1))]
    pub iters: usize,
    /// Calibration rows (an image at a timestep) in each step.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Adam's learning rate. A weight must be able to cross the whole range of V, about 5: `lr` · `iters` below 10
    /// leaves many where they began.
    pub lr: f32,
    /// Pull of the regulariser on a weight, in units of the error's typical pull on a weight of the same layer.
    pub lambda: f32,
    /// Exponent of the regulariser after the warm-up and at the end: large ones act on what is nearly decided,
    /// small ones on all.
    pub beta: [f32; 2],
    /// How the exponent goes from the first to the last value.
    pub schedule: BetaSchedule,
    /// Share of the iterations before the regulariser sets in, 0 to below 1.
    pub warm_up: f32,
    /// Where the outermost grid points go: `absmax` clips nothing, `mse` minimises the squared rounding error.
    pub clipping: Clipping,
}

impl Default for AdaRoundSettings {
    fn default() -> Self {
        Self {
            iters: 1000,
            batch_size: 32,
            lr: 0.02,
            lambda: 0.1,
            beta: [20.0, 2.0],
            schedule: BetaSchedule::Linear,
            warm_up: 0.2,
            clipping: Clipping::Mse,
        }
    }
}

/// The rounder `adaround`.
#[derive(Debug, Clone, Copy)]
pub struct AdaRound {
    settings: AdaRoundSettings,
}

impl AdaRound {
    /// A rounder with these settings; [`Error::Settings`] if one is out of range.
    pub fn new(settings: AdaRoundSettings) -> Result<Self> {
        let AdaRoundSettings { iters, batch_size, lr, lambda, beta, warm_up, .. } = settings;
        let check = |fine: bool, expected: String| {
            if fine { Ok(()) } else { Err(Error::settings("rounder `adaround`", expected)) }
        };
        check(iters >= 1, "iters = 0, expected 1 or more".into())?;
        check(batch_size >= 1, "batch_size = 0, expected 1 or more".into())?;
        check(lr.is_finite() && lr > 0.0, format!("lr = {lr}, expected a number greater than 0"))?;
        check(lambda.is_finite() && lambda >= 0.0, format!("lambda = {lambda}, expected 0 or more"))?;
        let in_range = beta.iter().all(|b| (1.0..=1000.0).contains(b));
        check(in_range, format!("beta = {beta:?}, expected two numbers from 1 to 1000"))?;
        check((0.0..1.0).contains(&warm_up), format!("warm_up = {warm_up}, expected 0 to below 1"))?;
        Ok(Self { settings })
    }

    fn learn(&self, job: &BlockJob<'_>, learners: &mut [Learner], cx: &Context) -> Result<Vec<f32>> {
        let settings = &self.settings;
        let mut batches = Batches::new(cx.seed, job.reconstruction.rows(), settings.batch_size);
        let nearest = dequantize(learners.iter().map(Learner::nearest))?;
        evaluate(job, &nearest, batches.next(), learners, Learner::calibrate)?;

        let mut losses = Vec::with_capacity(settings.iters.div_ceil(LOSS_STRIDE));
        for at in 0..settings.iters {
            cx.check()?;
            let beta = settings.schedule.beta(at, settings.iters, settings.warm_up, settings.beta);
            let step = Step {
                iteration: at + 1,
                lr: settings.lr,
                lambda: if beta.is_some() { settings.lambda } else { 0.0 },
                beta: beta.unwrap_or(settings.beta[0]),
            };
            let weights: Vec<Array> = learners.iter().map(|l| array(l.soft(), l.shape())).collect();
            let loss = evaluate(job, &weights, batches.next(), learners, |l, g| l.step(g, &step))?;
            if at % LOSS_STRIDE == 0 {
                losses.push(loss);
            }
            let done = at + 1;
            if done % REPORT_STRIDE == 0 || done == settings.iters {
                let (decided, free) = decided(learners);
                let share = 100.0 * decided as f64 / free.max(1) as f64;
                let since = (done - 1) % REPORT_STRIDE + 1;
                cx.progress.advance(since as u64, &format!("loss {loss:.3e}, {share:.0} % decided"));
            }
        }
        Ok(losses)
    }
}

impl Rounder for AdaRound {
    /// Learns, rounds hard, and compares with rounding to nearest on the same grid: if that has the smaller error on
    /// the held-out rows, it is returned instead and a warning tells so.
    ///
    /// Fails with [`Error::NotFinite`] if a weight, the error or its gradient is NaN or infinite.
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        cx.check()?;
        if job.reconstruction.rows() == 0 {
            let reason = format!("block `{}` has no calibration rows to learn from", job.block.id);
            return Err(Error::settings("rounder `adaround`", reason));
        }
        let new = |layer| Learner::new(layer, self.settings.clipping);
        let mut learners: Vec<Learner> = job.layers.iter().map(new).collect::<Result<_>>()?;
        let losses = self.learn(job, &mut learners, cx)?;
        let (undecided, free) = decided(&learners);
        let learned: Vec<RoundedLayer> = learners.iter().map(Learner::harden).collect();

        let held_out = |layers: Vec<Array>| finite_loss(job, job.reconstruction.held_out_loss(&layers)?);
        let ours = held_out(dequantize(&learned)?)?;
        let nearest = held_out(dequantize(learners.iter().map(Learner::nearest))?)?;
        let block = &job.block.id;
        tracing::debug!(%block, ours, nearest, undecided = free - undecided, "adaround: error on held-out rows");
        if ours > nearest {
            tracing::warn!(
                "adaround made block `{block}` worse on held-out rows ({ours:.4e}, rounding to nearest {nearest:.4e}); \
                 it is rounded to nearest instead. More calibration rows or other settings may help"
            );
            return Ok(RoundedBlock {
                layers: learners.iter().map(|l| l.nearest().clone()).collect(),
                losses,
            });
        }
        Ok(RoundedBlock { layers: learned, losses })
    }

    fn iterations(&self) -> u64 {
        self.settings.iters as u64
    }
}

/// Loss and gradients at `weights`; each learner gets its gradient and says whether it is finite.
fn evaluate(
    job: &BlockJob<'_>,
    weights: &[Array],
    rows: &[usize],
    learners: &mut [Learner],
    mut each: impl FnMut(&mut Learner, &[f32]) -> bool,
) -> Result<f32> {
    let (loss, gradients) = job.reconstruction.loss_and_grads(weights, rows)?;
    finite_loss(job, loss)?;
    if gradients.len() != learners.len() {
        return Err(Error::Shape {
            what: format!("gradients of block `{}`", job.block.id),
            expected: format!("one array per layer, {}", learners.len()),
            found: vec![gradients.len() as i32],
        });
    }
    for ((learner, gradient), layer) in learners.iter_mut().zip(&gradients).zip(job.layers) {
        let what = || format!("gradient of layer `{}`", layer.spec.id);
        if gradient.shape() != learner.shape().map(|n| n as i32) {
            let expected = format!("{:?}", learner.shape());
            return Err(Error::Shape { what: what(), expected, found: gradient.shape().to_vec() });
        }
        let gradient = gradient.contiguous()?;
        let values = gradient.try_as_slice::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
        if !each(learner, values) {
            return Err(Error::NotFinite { what: what() });
        }
    }
    Ok(loss)
}

fn finite_loss(job: &BlockJob<'_>, loss: f32) -> Result<f32> {
    let what = || format!("reconstruction error of block `{}`", job.block.id);
    if loss.is_finite() { Ok(loss) } else { Err(Error::NotFinite { what: what() }) }
}

fn dequantize<'a>(layers: impl IntoIterator<Item = &'a RoundedLayer>) -> Result<Vec<Array>> {
    layers.into_iter().map(RoundedLayer::dequantize).collect()
}

fn array(values: &[f32], shape: [usize; 2]) -> Array {
    Array::from_slice(values, &shape.map(|n| n as i32))
}

/// Weights that are decided, and weights that have a choice.
fn decided(learners: &[Learner]) -> (usize, usize) {
    learners.iter().map(Learner::decided).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

register!(
    Rounder,
    "adaround",
    AdaRoundSettings,
    AdaRound::new,
    "Learns block by block whether each weight is rounded up or down (AdaRound, BRECQ)."
);
