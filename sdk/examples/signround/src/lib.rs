//! SignRound: an offset of every weight before it is rounded, and the ends of every range, learned by the sign of the gradient
//! of the block's error.
//!
//! Cheng et al., *Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs* (arXiv 2309.05516);
//! intel/auto-round@b9f3d00, `auto_round/wrapper.py` and `auto_round/data_type/int.py`. As there: V begins at 0 and stays in
//! −½ … ½; the rate falls linearly from 1 / iterations, so that an offset can just cross its range; what was best by the way is
//! kept. Otherwise than there: ranges begin where the squared error of rounding to nearest is smallest (the host's start)
//! rather than at the outermost weights, zero points are real numbers, and what was best is told by the same rows each time.

mod learner;

use taq_plugin::{
    Batch, BlockJob, BlockRounder, Context, Error, Layer, LayerGradients, LayerValues, Plugin,
    Reconstruction, Result, RoundedLayer,
};
use taq_policy::testing::Random;

use learner::Learner;

/// Rows that tell what was best.
const JUDGES: usize = 32;
/// How often they are asked.
const TIMES: usize = 10;

/// Settings of `sign-round`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Steps for each block.
    #[schemars(range(min = 1))]
    pub iters: usize,
    /// Calibration rows (an image at a timestep) in each step.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// How far offsets and ends of ranges move in the first step; default: 1 / `iters`.
    pub lr: Option<f32>,
    /// Whether the ends of ranges are learned too.
    pub ranges: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { iters: 200, batch_size: 8, lr: None, ranges: true }
    }
}

/// The rounder `sign-round`.
#[derive(Debug, Clone, Copy)]
pub struct SignRound(Settings);

impl Plugin for SignRound {
    type Settings = Settings;
    const NAME: &'static str = "sign-round";
    const SUMMARY: &'static str =
        "Learns offsets of weights and ends of ranges by the sign of the gradient (SignRound, AutoRound).";

    fn new(settings: Settings) -> Result<Self> {
        let Settings { iters, batch_size, lr, .. } = settings;
        if iters == 0 || batch_size == 0 {
            let reason = format!("iters = {iters}, batch_size = {batch_size}: expected at least 1 of each");
            return Err(Error::invalid(reason));
        }
        match lr {
            Some(lr) if !(lr > 0.0 && lr <= 1.0) => {
                Err(Error::invalid(format!("lr = {lr}, expected a number above 0 and at most 1")))
            }
            _ => Ok(Self(settings)),
        }
    }
}

impl BlockRounder for SignRound {
    fn round(&self, job: &mut BlockJob<'_>, cx: &Context<'_>) -> Result<Vec<RoundedLayer>> {
        cx.check()?;
        let rows = job.reconstruction.rows();
        if rows == 0 {
            return Err(Error::invalid("there are no calibration rows to learn from"));
        }
        let Settings { iters, batch_size, lr, ranges } = self.0;
        let rate = lr.unwrap_or(1.0 / iters as f32);
        let mut random = Random::new(cx.seed);
        let BlockJob { block, layers, reconstruction } = job;
        let mut learners: Vec<Learner> = layers.iter().map(Learner::new).collect();
        let mut room: Vec<Vec<f32>> = layers.iter().map(|l| vec![0.0; l.weight.len()]).collect();
        let judges = spread(rows, JUDGES);
        compute(&learners, layers, &mut room);
        let mut best = (error(reconstruction, &room, &judges)?.0, learners.clone());
        for iteration in 0..iters {
            cx.check()?;
            let batch: Vec<u64> = (0..batch_size).map(|_| random.below(rows as u64)).collect();
            let (loss, gradients) = error(reconstruction, &room, &batch)?;
            if !loss.is_finite() {
                return Err(Error::Failed(format!("the error of {block} is {loss}")));
            }
            let left = rate * (1.0 - iteration as f32 / iters as f32);
            for ((learner, layer), gradients) in learners.iter_mut().zip(&*layers).zip(&gradients) {
                learner.step(layer.weight, gradients.weight, left, if ranges { left } else { 0.0 });
            }
            compute(&learners, layers, &mut room);
            let done = iteration + 1;
            if done == iters || done.is_multiple_of(iters.div_ceil(TIMES)) {
                let loss = error(reconstruction, &room, &judges)?.0;
                if loss < best.0 {
                    best = (loss, learners.clone());
                }
                taq_plugin::tracing::debug!("{block}: {done} of {iters}, error {loss:.4e}");
            }
            cx.progress(done as u64, iters as u64);
        }
        Ok(best.1.iter().zip(&*layers).map(|(learner, layer)| learner.rounded(layer.weight)).collect())
    }
}

/// Puts every layer's weight into the room for it.
fn compute(learners: &[Learner], layers: &[Layer<'_>], room: &mut [Vec<f32>]) {
    for ((learner, layer), values) in learners.iter().zip(layers).zip(room) {
        learner.values(layer.weight, values);
    }
}

/// The block's error with these weights over some rows, and its derivatives.
fn error<'a>(
    block: &'a mut Reconstruction<'_>,
    weights: &[Vec<f32>],
    rows: &[u64],
) -> Result<(f32, Vec<LayerGradients<'a>>)> {
    let values: Vec<_> = weights.iter().map(|weight| LayerValues { weight, input_scale: None }).collect();
    block.loss_and_gradients(&values, Batch { rows, drop: None }, false)
}

/// At most so many of `count` rows, at equal distances.
fn spread(count: usize, most: usize) -> Vec<u64> {
    let kept = count.min(most);
    (0..kept).map(|i| (i * count / kept) as u64).collect()
}

taq_plugin::export_plugin! { block_rounders: [SignRound] }

#[cfg(test)]
mod tests {
    use super::*;
    use taq_plugin::conformance::{Host, Problem, RounderUnderTest, Rounds, assert_rounder_conforms};
    use taq_plugin::host::LayerData;

    fn rounder(settings: &str) -> RounderUnderTest {
        RounderUnderTest::of_blocks::<SignRound>(settings)
    }

    #[test]
    fn conforms() {
        // Miri takes some thousand times as long.
        let settings = if cfg!(miri) { r#"{"iters": 2}"# } else { r#"{"iters": 30}"# };
        assert_rounder_conforms(&rounder(settings));
    }

    #[test]
    fn is_better_than_nearest_on_rows_that_it_never_saw() {
        for seed in 0..4 {
            for (bits, symmetric) in [(3, false), (3, true), (2, false), (4, false)] {
                let shape = [16, 32];
                let grid = Problem::grid(shape, bits, symmetric, shape[1]);
                let problem = Problem::new(seed, shape, grid, 96, 1);
                let found = rounder("{}").round(&problem, seed, &Host::default()).unwrap();
                let nearest = |data: &LayerData| -> RoundedLayer {
                    let scale =
                        |i: usize| (data.start_scale[i / shape[1]], data.start_zero_point[i / shape[1]]);
                    let integer = |(i, w): (usize, &f32)| data.grid.integer(*w, scale(i).0, scale(i).1);
                    RoundedLayer {
                        weight_int: data.weight.iter().enumerate().map(integer).collect(),
                        scale: data.start_scale.clone(),
                        zero_point: data.start_zero_point.clone(),
                        input_scale: None,
                    }
                };
                let nearest: Vec<_> = problem.layers.iter().map(nearest).collect();
                let (ours, nearest) = (problem.held_out_of(&found), problem.held_out_of(&nearest));
                assert!(
                    ours < 0.75 * nearest,
                    "seed {seed}, {bits} bits, symmetric {symmetric}: {ours} {nearest}"
                );
            }
        }
    }

    #[test]
    fn settings_have_ranges() {
        for (settings, expected) in [
            (r#"{"iters": 0}"#, "iters = 0"),
            (r#"{"lr": 2.0}"#, "lr = 2, expected a number above 0 and at most 1"),
            (r#"{"iter": 5}"#, "unknown field `iter`"),
        ] {
            let message = rounder(settings).create(None).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
