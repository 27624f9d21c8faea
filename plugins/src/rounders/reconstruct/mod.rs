//! Block reconstruction: what the learned rounders share.
//!
//! All layers of a block are learned jointly so that the block's output changes least (BRECQ: Li et al.,
//! arXiv 2102.05426; yhhhli/BRECQ `quant/block_recon.py`): the rounding of every weight (AdaRound, [`weights`]), and where
//! a recipe asks for it, in the same backward pass, the step sizes of the inputs (LSQ) and a correction of the biases
//! ([`inputs`]). Batches may mix full precision in (QDrop).
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

mod adam;
mod batches;
mod calibrate;
mod hard;
mod inputs;
mod layer;
mod math;
mod soft;
mod start;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod weights;

use mlx_rs::{Array, transforms};
use taq_core::quant::{QDrop, QuantizedLayer, is_finite, to_vec};
use taq_core::{
    Batch, BlockJob, Context, Error, LOSS_STRIDE, LayerGradients, Result, RoundedBlock, RoundedLayer,
};

use batches::Batches;
pub use calibrate::Inputs;
pub(super) use calibrate::{Calibrated, InputCalibration, calibrate_inputs};
pub(super) use inputs::{InputLearner, InputRates, InputStart};
pub(super) use layer::LayerLearner;
pub use soft::BetaSchedule;
pub use start::Start;
use weights::Step;

/// Iterations between two reports of progress.
const REPORT_STRIDE: usize = 10;

/// Learning of the rounding ends early when less than one in so many weights is still undecided: what is decided does not
/// move any more.
const UNSETTLED: usize = 1000;

/// How a block is learned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe {
    /// The rounder's name.
    pub(super) rounder: &'static str,
    /// Steps of the optimiser.
    pub(super) iters: usize,
    /// Rows in each step.
    pub(super) batch_size: usize,
    /// Adam's learning rate of V.
    pub(super) lr: f32,
    /// Pull of the regulariser; see the module's head.
    pub(super) lambda: f32,
    /// Its exponent after the warm-up and at the end.
    pub(super) beta: [f32; 2],
    /// How the exponent goes from one to the other.
    pub(super) schedule: BetaSchedule,
    /// Share of the iterations before the regulariser sets in.
    pub(super) warm_up: f32,
    /// Share of the elements in full precision, 0 to switch QDrop off.
    pub(super) drop: f32,
    /// Further steps after hard rounding, of everything but the integers.
    pub(super) polish: usize,
    /// The same over all blocks at once.
    pub(super) end_to_end: usize,
}

impl Recipe {
    /// [`Error::Settings`] if a number is out of range.
    pub(super) fn check(&self) -> Result<()> {
        let Self { iters, batch_size, lr, lambda, beta, warm_up, drop, .. } = *self;
        let check = |fine: bool, expected: String| {
            if fine { Ok(()) } else { Err(Error::settings(self.owner(), expected)) }
        };
        check(iters >= 1, "iters = 0, expected 1 or more".into())?;
        check(batch_size >= 1, "batch_size = 0, expected 1 or more".into())?;
        check(lr.is_finite() && lr > 0.0, format!("lr = {lr}, expected a number greater than 0"))?;
        check(lambda.is_finite() && lambda >= 0.0, format!("lambda = {lambda}, expected 0 or more"))?;
        let in_range = beta.iter().all(|b| (1.0..=1000.0).contains(b));
        check(in_range, format!("beta = {beta:?}, expected two numbers from 1 to 1000"))?;
        check((0.0..1.0).contains(&warm_up), format!("warm_up = {warm_up}, expected 0 to below 1"))?;
        check((0.0..1.0).contains(&drop), format!("drop_prob = {drop}, expected 0 to below 1"))
    }

    fn owner(&self) -> String {
        format!("rounder `{}`", self.rounder)
    }

    /// Units of progress of a block.
    pub(super) fn units(&self) -> u64 {
        (self.iters + self.polish) as u64
    }

    /// Learns, rounds hard, and compares with where it began and with rounding to nearest: if one of them has the smaller
    /// error on the held-out rows, that is returned instead and a warning tells so.
    ///
    /// Fails with [`Error::NotFinite`] if a weight, the error or its gradient is NaN or infinite.
    pub(super) fn reconstruct(
        &self,
        job: &BlockJob<'_>,
        mut learners: Vec<LayerLearner>,
        cx: &Context,
    ) -> Result<RoundedBlock> {
        let mut losses = self.learn(job, &mut learners, cx)?;
        let (decided, free) = decided(&learners)?;
        learners.iter_mut().try_for_each(LayerLearner::harden)?;
        losses.extend(self.tune(job, &mut learners, cx, self.polish)?);

        let learned = learners.iter().map(LayerLearner::rounded).collect::<Result<Vec<_>>>()?;
        let held_out = |layers: &[RoundedLayer]| {
            finite_loss(job, job.reconstruction.held_out_loss(&job.quantized(layers)?)?)
        };
        let (rounder, block, ours) = (self.rounder, &job.block.id, held_out(&learned)?);
        tracing::debug!(%block, ours, undecided = free - decided, "{rounder}: error on held-out rows");

        let nearest: Vec<RoundedLayer> = learners.iter().map(LayerLearner::nearest).collect();
        let start: Vec<RoundedLayer> = learners.iter().map(LayerLearner::start).collect();
        // Learning may have begun at nearest.
        let start = (start != nearest).then_some(("what it began with", start));
        let (mut error, mut layers, mut kept) = (ours, learned, None);
        for (name, other) in [("rounding to nearest", nearest)].into_iter().chain(start) {
            let of_other = held_out(&other)?;
            if of_other < error {
                (error, layers, kept) = (of_other, other, Some(name));
            }
        }
        if let Some(kept) = kept {
            tracing::warn!(
                "{rounder} left block `{block}` with a larger error on held-out rows ({ours:.4e}) than {kept} \
                 ({error:.4e}), which is kept instead. More calibration rows or other settings may help"
            );
        }
        Ok(RoundedBlock { layers, losses })
    }

    /// Learns the rounding, and with it whatever else the layers learn.
    fn learn(&self, job: &BlockJob<'_>, learners: &mut [LayerLearner], cx: &Context) -> Result<Vec<f32>> {
        let mut batches = Batches::new(cx.seed, job.reconstruction.rows(), self.batch_size);
        let at_nearest: Vec<RoundedLayer> = learners.iter().map(LayerLearner::nearest).collect();
        let batch = Batch { rows: batches.next(), drop: None };
        let (_, gradients) = gradients(job, &job.quantized(&at_nearest)?, batch)?;
        for ((learner, gradients), layer) in learners.iter_mut().zip(&gradients).zip(job.layers) {
            if !is_finite(&gradients.weight)? {
                return Err(Error::NotFinite { what: format!("gradient of layer `{}`", layer.spec.id) });
            }
            learner.calibrate(gradients)?;
        }
        self.descend(job, learners, cx, self.iters, &mut batches, |at| {
            let beta = self.schedule.beta(at, self.iters, self.warm_up, self.beta);
            let step = Step {
                iteration: at + 1,
                lr: self.lr,
                lambda: if beta.is_some() { self.lambda } else { 0.0 },
                beta: beta.unwrap_or(self.beta[0]),
            };
            (step, self.qdrop(cx.seed, at))
        })
    }

    /// Learns what there is beside the integers, for all blocks at once (the second phase of EfficientQAT: Chen et al.,
    /// arXiv 2407.11062).
    pub(super) fn end_to_end(
        &self,
        job: &BlockJob<'_>,
        mut learners: Vec<LayerLearner>,
        cx: &Context,
    ) -> Result<RoundedBlock> {
        let losses = self.tune(job, &mut learners, cx, self.end_to_end)?;
        let layers = learners.iter().map(LayerLearner::rounded).collect::<Result<_>>()?;
        Ok(RoundedBlock { layers, losses })
    }

    /// With the integers fixed, learns what else there is. Nothing is left in full precision: these are the numbers that
    /// the quantized model computes with.
    fn tune(
        &self,
        job: &BlockJob<'_>,
        learners: &mut [LayerLearner],
        cx: &Context,
        iters: usize,
    ) -> Result<Vec<f32>> {
        let mut batches = Batches::new(!cx.seed, job.reconstruction.rows(), self.batch_size);
        self.descend(job, learners, cx, iters, &mut batches, |at| {
            (Step { iteration: at + 1, lr: self.lr, lambda: 0.0, beta: self.beta[1] }, None)
        })
    }

    /// Takes `iters` steps, or fewer where all weights are decided before; what each is like, `plan` says. Returns the loss
    /// every [`LOSS_STRIDE`] steps.
    ///
    /// On a GPU the graph of a step is built while the one before is still computed: the loss is looked at only when
    /// progress is told. On the CPU a step can change its variables in place only once the one before is done.
    fn descend(
        &self,
        job: &BlockJob<'_>,
        learners: &mut [LayerLearner],
        cx: &Context,
        iters: usize,
        batches: &mut Batches,
        plan: impl Fn(usize) -> (Step, Option<QDrop>),
    ) -> Result<Vec<f32>> {
        let on_cpu = mlx_host::on_cpu();
        let mut losses = Vec::with_capacity(iters.div_ceil(LOSS_STRIDE));
        for at in 0..iters {
            cx.check()?;
            let (step, drop) = plan(at);
            let layers = learners.iter().map(LayerLearner::quantized).collect::<Result<Vec<_>>>()?;
            let batch = Batch { rows: batches.next(), drop };
            let (loss, gradients) = gradients(job, &layers, batch)?;
            std::mem::drop(layers);
            for (learner, gradients) in learners.iter_mut().zip(&gradients) {
                learner.step(gradients, &step, cosine(at, iters))?;
            }
            std::mem::drop(gradients);
            let results = [&loss].into_iter().chain(learners.iter().flat_map(LayerLearner::arrays));
            if on_cpu {
                transforms::eval(results)?
            } else {
                transforms::async_eval(results)?
            }
            if at % LOSS_STRIDE == 0 {
                losses.push(to_vec(&loss)?[0]);
            }
            let done = at + 1;
            if done.is_multiple_of(REPORT_STRIDE) || done == iters {
                let loss = to_vec(&loss)?[0];
                check(job, learners, loss)?;
                let (decided, free) = decided(learners)?;
                let note = match free {
                    0 => format!("loss {loss:.3e}, integers fixed"),
                    _ => format!("loss {loss:.3e}, {:.0} % decided", 100.0 * decided as f64 / free as f64),
                };
                let settled = free > 0 && (free - decided) * UNSETTLED <= free;
                let left = if settled { iters - done } else { 0 };
                cx.progress.advance(((done - 1) % REPORT_STRIDE + 1 + left) as u64, &note);
                if settled {
                    break;
                }
            }
        }
        Ok(losses)
    }

    fn qdrop(&self, seed: u64, iteration: usize) -> Option<QDrop> {
        let seed = (seed ^ (seed >> 32)) as u32;
        let seed = seed.wrapping_add((iteration as u32).wrapping_mul(0x9e37_79b9));
        (self.drop > 0.0).then_some(QDrop { probability: self.drop, seed })
    }
}

/// Share of a learning rate that is left at iteration `at`: half a cosine from 1 to 0.
fn cosine(at: usize, iters: usize) -> f32 {
    0.5 * (1.0 + (std::f32::consts::PI * at as f32 / iters as f32).cos())
}

/// Loss and gradients of these layers, lazy, with their shapes checked.
fn gradients(
    job: &BlockJob<'_>,
    layers: &[QuantizedLayer],
    batch: Batch<'_>,
) -> Result<(Array, Vec<LayerGradients>)> {
    let (loss, gradients) = job.reconstruction.loss_and_grads(layers, batch)?;
    if gradients.len() != layers.len() {
        return Err(Error::Shape {
            what: format!("gradients of block `{}`", job.block.id),
            expected: format!("one per layer, {}", layers.len()),
            found: vec![gradients.len() as i32],
        });
    }
    for ((gradients, layer), job) in gradients.iter().zip(layers).zip(job.layers) {
        let LayerGradients { weight, scale, bias } = gradients;
        let bias = bias.as_ref().zip(layer.bias.as_ref());
        for (gradient, of) in [(weight, &layer.weight), (scale, &layer.input.scale)].into_iter().chain(bias) {
            if of.shape() != gradient.shape() {
                return Err(Error::Shape {
                    what: format!("gradient of layer `{}`", job.spec.id),
                    expected: format!("{:?}", of.shape()),
                    found: gradient.shape().to_vec(),
                });
            }
        }
    }
    Ok((loss, gradients))
}

/// [`Error::NotFinite`] names the layer where a gradient was not finite, or else the block.
fn check(job: &BlockJob<'_>, learners: &[LayerLearner], loss: f32) -> Result<()> {
    for (learner, layer) in learners.iter().zip(job.layers) {
        if !learner.is_finite()? {
            return Err(Error::NotFinite { what: format!("gradient of layer `{}`", layer.spec.id) });
        }
    }
    finite_loss(job, loss).map(|_| ())
}

fn finite_loss(job: &BlockJob<'_>, loss: f32) -> Result<f32> {
    let what = || format!("reconstruction error of block `{}`", job.block.id);
    if loss.is_finite() { Ok(loss) } else { Err(Error::NotFinite { what: what() }) }
}

/// Weights that are decided, and weights that have a choice.
fn decided(learners: &[LayerLearner]) -> Result<(usize, usize)> {
    let mut sum = (0, 0);
    for learner in learners {
        let (decided, free) = learner.decided()?;
        sum = (sum.0 + decided, sum.1 + free);
    }
    Ok(sum)
}

/// [`Error::Settings`] if there is nothing to learn from.
pub(super) fn needs_rows(rounder: &str, job: &BlockJob<'_>) -> Result<()> {
    if job.reconstruction.rows() == 0 {
        let reason = format!("block `{}` has no calibration rows to learn from", job.block.id);
        return Err(Error::settings(format!("rounder `{rounder}`"), reason));
    }
    Ok(())
}
