//! The calibration data of one block, or of all of them as one: inputs from the quantized prefix (mixed with full precision if QDrop is asked for),
//! targets from full precision.

use std::ops::Range;

use mlx_rs::{Array, ops, random};

use super::boundary::{Boundary, CHUNK, blocks_forward};
use super::gradient::value_and_gradients;
use super::importance::Importance;
use super::quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
use crate::quant::{InputGrids, QDrop, QuantizedLayer};
use crate::{
    Batch, BlockIo, Error, LayerGradients, LayerJob, LinearCall, Model, Reconstruction, Result, Tap,
};

/// Shows every layer's input, smoothed where the plan says so, and changes nothing.
struct Watch<'a, F> {
    plan: &'a ActivationPlan,
    layers: &'a [LayerJob],
    visit: F,
}

impl<F: FnMut(usize, &Array) -> Result<()>> Tap for Watch<'_, F> {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if let Some(layer) = self.layers.iter().position(|l| l.spec.id == call.layer.id) {
            match self.plan.smoothed.get(&call.layer.id) {
                Some(smoothing) => (self.visit)(layer, &smoothing.input(call.input)?)?,
                None => (self.visit)(layer, call.input)?,
            }
        }
        call.compute()
    }
}

/// See the module's head. Rows of the boundaries from 0 to `learn` are learned from, the rest only judges.
pub(super) struct BlockReconstruction<'a> {
    pub model: &'a dyn Model,
    /// One block, or all of them at once.
    pub blocks: Range<usize>,
    pub plan: &'a ActivationPlan,
    /// Layers that the plan smooths are their smoothed selves here: weights, inputs, and what is made of them.
    pub layers: &'a [LayerJob],
    /// From the quantized prefix.
    pub inputs: &'a Boundary,
    /// From full precision.
    pub exact_inputs: &'a Boundary,
    pub targets: &'a Boundary,
    pub learn: usize,
    /// What weights the error; `None`: every element alike.
    pub importance: Option<&'a Importance>,
    /// The two branches of guidance, whose rows stand side by side; `None`: one row a sample.
    pub guidance: Option<Guided>,
}

/// Rows in pairs: a sample with its prompt, the same without.
#[derive(Clone, Copy)]
pub(super) struct Guided {
    /// Classifier-free guidance weight w.
    pub weight: f32,
    /// Whether the error of the guided output is made small, or that of either branch alone.
    pub together: bool,
}

impl Guided {
    /// Squared errors of w e₊ − (w − 1) e₋ for image tokens' errors `[2 · samples, tokens, width]`, each pair's in the place
    /// of both its rows, and half of what it is.
    ///
    /// What the sampler follows is v₋ + w (v₊ − v₋): an error that both branches share comes through once, one that they
    /// do not share up to 2w − 1 times.
    pub fn squares(self, errors: &Array) -> Result<Array> {
        let &[rows, tokens, width] = errors.shape() else { return Ok(errors.square()?) };
        let pairs = errors.reshape(&[rows / 2, 2, tokens, width])?;
        let branch = Array::from_slice(&[self.weight, 1.0 - self.weight], &[1, 2, 1, 1]);
        let guided = pairs.multiply(branch)?.sum_axis(1, true)?.square()?;
        let half = guided.multiply(Array::from_f32(0.5))?;
        Ok(ops::broadcast_to(&half, &[rows / 2, 2, tokens, width])?.reshape(errors.shape())?)
    }
}

impl BlockReconstruction<'_> {
    /// Sum of (weighted) squared errors over both streams, and the number of elements.
    fn squared_error(
        &self,
        layers: Vec<QuantizedLayer>,
        io: &BlockIo,
        target: &BlockIo,
        drop: Option<QDrop>,
    ) -> Result<(Array, usize)> {
        let layers: QuantizedLayers = self
            .layers
            .iter()
            .zip(layers)
            .map(|(l, layer)| {
                let id = &l.spec.id;
                let layer = match self.plan.smoothed.get(id) {
                    Some(smoothing) => smoothing.layer(layer)?,
                    None => layer,
                };
                Ok((id.clone(), layer))
            })
            .collect::<Result<_>>()?;
        let mut tap = QuantizedTap::new(self.plan, &layers).with_drop(drop);
        let out = blocks_forward(self.model, self.blocks.clone(), io, &mut tap)?;
        let steps: Vec<usize> = io.timesteps.iter().map(|&t| self.plan.step(t)).collect();
        let stream = |out: &Array, target: &Array, weights: Option<&Array>, guided: bool| -> Result<Array> {
            let errors = out.subtract(target)?;
            let mut squares = errors.square()?;
            if let Some(guidance) = self.guidance.filter(|g| guided && g.together) {
                squares = squares.add(guidance.squares(&errors)?)?;
            }
            Ok(weights.map_or(Ok(squares.clone()), |w| Importance::weigh(w, &squares, &steps))?.sum(None)?)
        };
        let mut sum = stream(&out.hidden, &target.hidden, self.importance.map(Importance::hidden), true)?;
        let mut count = target.hidden.size();
        if let (Some(out), Some(target)) = (&out.context, &target.context) {
            let weights = self.importance.and_then(Importance::context);
            sum = sum.add(stream(out, target, weights, false)?)?;
            count += target.size();
        }
        Ok((sum, count))
    }

    /// Rows of a boundary in one sample.
    fn branches(&self) -> usize {
        1 + usize::from(self.guidance.is_some())
    }

    /// The rows of these samples in a boundary.
    fn boundary_rows(&self, samples: &[usize]) -> Vec<usize> {
        let branches = self.branches();
        samples.iter().flat_map(|s| s * branches..(s + 1) * branches).collect()
    }

    /// What a batch puts into the block: from the quantized prefix, or mixed with full precision.
    fn batch_inputs(&self, rows: &[usize], drop: Option<QDrop>) -> Result<BlockIo> {
        let io = self.inputs.rows(rows)?;
        let Some(QDrop { probability, seed }) = drop else { return Ok(io) };
        let exact = self.exact_inputs.rows(rows)?;
        let key = random::key(u64::from(seed))?;
        let (for_hidden, for_context) = random::split(&key, 2)?;
        let mix = |quantized: &Array, exact: &Array, key: &Array| -> Result<Array> {
            let keep = random::bernoulli(&Array::from_f32(probability), quantized.shape(), key)?;
            Ok(ops::select(keep, exact, quantized)?)
        };
        let context = match (&io.context, &exact.context) {
            (Some(quantized), Some(exact)) => Some(mix(quantized, exact, &for_context)?),
            _ => None,
        };
        Ok(BlockIo { hidden: mix(&io.hidden, &exact.hidden, &for_hidden)?, context, ..io })
    }
}

impl Reconstruction for BlockReconstruction<'_> {
    fn rows(&self) -> usize {
        self.learn / self.branches()
    }

    fn step(&self, row: usize) -> usize {
        self.plan.step(self.inputs.timesteps[row * self.branches()])
    }

    fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
        let io = self.inputs.rows(&self.boundary_rows(rows))?;
        blocks_forward(
            self.model,
            self.blocks.clone(),
            &io,
            &mut Watch { plan: self.plan, layers: self.layers, visit },
        )?;
        Ok(())
    }

    fn loss_and_grads(
        &self,
        layers: &[QuantizedLayer],
        batch: Batch<'_>,
    ) -> Result<(Array, Vec<LayerGradients>)> {
        let rows = self.boundary_rows(batch.rows);
        let (io, target) = (self.batch_inputs(&rows, batch.drop)?, self.targets.rows(&rows)?);
        let loss = |arrays: &[Array]| {
            let (sum, count) = self.squared_error(with_arrays(layers, arrays), &io, &target, batch.drop)?;
            Ok(sum.multiply(Array::from_f32(1.0 / count as f32))?)
        };
        let (value, grads) = value_and_gradients(&arrays(layers), loss)?;
        let mut grads = grads.into_iter();
        let gradients = layers.iter().map_while(|layer| {
            let (weight, scale) = (grads.next()?, grads.next()?);
            let bias = if layer.bias.is_some() { Some(grads.next()?) } else { None };
            Some(LayerGradients { weight, scale, bias })
        });
        Ok((value, gradients.collect()))
    }

    fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
        let rows: Vec<usize> = (self.learn..self.inputs.len()).collect();
        let (mut total, mut elements) = (0.0, 0);
        for rows in rows.chunks(CHUNK) {
            let (io, target) = (self.inputs.rows(rows)?, self.targets.rows(rows)?);
            let (sum, count) = self.squared_error(layers.to_vec(), &io, &target, None)?;
            total += f64::from(item(&sum)?);
            elements += count;
        }
        Ok((total / elements.max(1) as f64) as f32)
    }
}

/// What is differentiated: of each layer the weight, the step sizes, the bias if there is one.
fn arrays(layers: &[QuantizedLayer]) -> Vec<Array> {
    let of_layer = |l: &QuantizedLayer| {
        [Some(l.weight.clone()), Some(l.input.scale.clone()), l.bias.clone()].into_iter().flatten()
    };
    layers.iter().flat_map(of_layer).collect()
}

/// The layers with other arrays in the places of [`arrays`].
fn with_arrays(layers: &[QuantizedLayer], arrays: &[Array]) -> Vec<QuantizedLayer> {
    let mut next = arrays.iter().cloned();
    let mut take = |own: &Array| next.next().unwrap_or_else(|| own.clone());
    layers
        .iter()
        .map(|l| QuantizedLayer {
            weight: take(&l.weight),
            input: InputGrids { scale: take(&l.input.scale), ..l.input.clone() },
            bias: l.bias.as_ref().map(&mut take),
        })
        .collect()
}

fn item(scalar: &Array) -> Result<f32> {
    scalar
        .try_item_exact::<f32>()
        .map_err(|e| Error::Unsupported { what: format!("a loss is no f32 number: {e}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guided_errors_are_those_of_the_guided_output() {
        // Two samples of one token and two channels, each with its prompt and without.
        let errors = [1.0_f32, 2.0, 1.0, -1.0, 0.5, 0.0, -0.5, 3.0];
        let weight = 4.0;
        let guided = Guided { weight, together: true };
        let found = guided.squares(&Array::from_slice(&errors, &[4, 1, 2])).unwrap();
        assert_eq!(found.shape(), [4, 1, 2]);
        for (sample, pair) in errors.chunks(4).enumerate() {
            for channel in 0..2 {
                let (with, without) = (pair[channel], pair[2 + channel]);
                // v₋ + w (v₊ − v₋)
                let error = without + weight * (with - without);
                for branch in 0..2 {
                    let half = found.as_slice::<f32>()[sample * 4 + branch * 2 + channel];
                    assert_eq!(half, error * error / 2.0, "sample {sample}, channel {channel}");
                }
            }
        }
        // What both branches share comes through once.
        let shared = guided.squares(&Array::from_slice(&[0.5_f32; 4], &[2, 1, 2])).unwrap();
        assert_eq!(shared.sum(None).unwrap().item_exact::<f32>(), 0.5);
    }
}
