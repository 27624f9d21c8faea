//! The second-order estimate: what a layer's error does to the output, to first order, without running the model again.
//!
//! An error δ of a layer's output changes the model's output by about J δ, where J is the derivative of the one by the other:
//! ‖J δ‖² is the Gauss–Newton form δᵀ(JᵀJ)δ, and JᵀJ the Fisher information of a normal distribution around the output. With
//! a vector r of independent random signs, E[(rᵀJδ)²] is ‖J δ‖², and one backward pass gives Jᵀr at every layer's output at
//! once. All widths of all layers then take one matrix product each. Unlike the diagonal that weights a block's error
//! (`importance`), this knows how errors of different elements add up.
//!
//! The backward pass goes block by block and keeps only what is between them. Both rows of a guided sample have the same
//! signs: then rᵀJδ of the guided output is w times that of the one less w − 1 times that of the other.

use std::collections::BTreeMap;

use mlx_rs::{Array, ops, random, transforms};

use super::rows::{Rows, Squares};
use super::substitute::Widths;
use crate::pipeline::boundary::{Boundary, block_forward};
use crate::pipeline::gradient::{random_signs, value_and_gradients};
use crate::{BlockIo, BlockSpec, Context, Identity, LayerId, LinearCall, Model, Result, Tap};

/// Rows in one backward pass; even, so that no pair is torn apart.
const CHUNK: usize = 8;
/// Random directions of each sample's output.
pub(super) const PROBES: usize = 4;

/// Estimated sums of squared errors, by layer, in the order of its substitutes.
pub(super) type Estimates = BTreeMap<LayerId, Vec<Squares>>;

/// Estimates every layer at every width.
pub(super) fn estimate(
    model: &dyn Model,
    cx: &Context,
    rows: &Rows,
    embedded: &Boundary,
    widths: &mut Widths,
) -> Result<Estimates> {
    let zero = || vec![Squares::zero(rows); widths.len()];
    let mut sums: Estimates = model.spec().layers().map(|l| (l.id.clone(), zero())).collect();
    let all: Vec<usize> = (0..rows.len()).collect();
    cx.progress.begin("sensitivity, estimate", all.chunks(CHUNK).len() as u64);
    for (number, chunk) in all.chunks(CHUNK).enumerate() {
        let mut io = embedded.rows(chunk)?;
        let mut inputs = Vec::new();
        for block in 0..model.spec().blocks.len() {
            let next = block_forward(model, block, &io, &mut Identity)?;
            transforms::eval([&next.hidden].into_iter().chain(&next.context))?;
            inputs.push(std::mem::replace(&mut io, next));
        }
        let probe = |probe: usize| {
            let key = random::key(cx.seed ^ (number * PROBES + probe + 1) as u64)?;
            last(model, rows, &io, &key)
        };
        let mut cotangents = (0..PROBES).map(probe).collect::<Result<Vec<_>>>()?;
        for (block, io) in inputs.iter().enumerate().rev() {
            cx.check()?;
            let pass = Pass { model, block: &model.spec().blocks[block], index: block, io };
            for (layer, products) in pass.products(&mut cotangents, widths)? {
                let Some(sums) = sums.get_mut(&layer) else { continue };
                let products = products.split_equal(sums.len() as i32, 2)?;
                for (sums, products) in sums.iter_mut().zip(products) {
                    rows.add(sums, chunk, &products, 1.0 / PROBES as f64)?;
                }
            }
        }
        cx.progress.advance(1, "");
    }
    cx.progress.end();
    Ok(sums)
}

/// Derivatives by a block's image and text tokens.
type Cotangent = [Option<Array>; 2];

/// Jᵀr at the last block's output.
fn last(model: &dyn Model, rows: &Rows, io: &BlockIo, key: &Array) -> Result<Cotangent> {
    let run = |hidden: &[Array]| -> Result<Array> {
        let velocity = model.unembed(
            &BlockIo { hidden: hidden[0].clone(), ..io.clone() },
            rows.latent,
            &mut Identity,
        )?;
        let (shape, branches) = (velocity.shape(), rows.branches() as i32);
        let samples = [&[shape[0] / branches, 1], &shape[1..]].concat();
        let of_rows = [&[shape[0] / branches, branches], &shape[1..]].concat();
        let signs = ops::broadcast_to(&random_signs(&samples, key)?, &of_rows)?.reshape(shape)?;
        Ok(velocity.multiply(signs)?.sum(None)?)
    };
    let (_, gradients) = value_and_gradients(std::slice::from_ref(&io.hidden), run)?;
    transforms::eval(&gradients)?;
    Ok([gradients.into_iter().next(), None])
}

/// One block of the backward pass.
struct Pass<'a> {
    model: &'a dyn Model,
    block: &'a BlockSpec,
    index: usize,
    /// What goes into the block.
    io: &'a BlockIo,
}

impl Pass<'_> {
    /// rᵀJδ of each layer, row, probe and substitute, `[rows, probes, substitutes]`; the cotangents become those of the
    /// block's input.
    fn products(&self, cotangents: &mut [Cotangent], widths: &mut Widths) -> Result<Vec<(LayerId, Array)>> {
        let mut inputs = Inputs::default();
        block_forward(self.model, self.index, self.io, &mut inputs)?;
        let called: Vec<_> =
            self.block.layers.iter().filter_map(|l| Some((l, inputs.0.remove(&l.id)?))).collect();
        let zero = |(layer, input): &(&crate::LayerSpec, Array)| {
            ops::zeros::<f32>(&[input.dim(0), input.dim(1), layer.out_features as i32])
        };
        let zeros = called.iter().map(zero).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<&LayerId> = called.iter().map(|(layer, _)| &layer.id).collect();
        let mut gradients = vec![Vec::new(); called.len()];
        for cotangent in cotangents {
            let (layers, next) = self.pull_back(&ids, &zeros, cotangent)?;
            gradients.iter_mut().zip(layers).for_each(|(all, gradient)| all.push(gradient));
            *cotangent = next;
        }
        let mut products = Vec::new();
        for ((layer, input), gradients) in called.iter().zip(&gradients) {
            let weight = self.model.weight(&layer.id)?;
            let errors = widths.of(self.model, &layer.id)?;
            let errors = errors.iter().map(|s| s.error(input, &weight, &self.io.timesteps));
            let errors = flat(&errors.collect::<Result<Vec<_>>>()?)?;
            let product = flat(gradients)?.matmul(errors.swap_axes(1, 2)?)?;
            product.eval()?;
            products.push((layer.id.clone(), product));
        }
        Ok(products)
    }

    /// From the derivatives by what comes out of the block to those by each layer's output and by what goes in.
    fn pull_back(
        &self,
        layers: &[&LayerId],
        zeros: &[Array],
        [hidden, context]: &Cotangent,
    ) -> Result<(Vec<Array>, Cotangent)> {
        let streams: Vec<Array> = [&self.io.hidden].into_iter().chain(&self.io.context).cloned().collect();
        let run = |arrays: &[Array]| -> Result<Array> {
            let (streams, added) = arrays.split_at(streams.len());
            let io =
                BlockIo { hidden: streams[0].clone(), context: streams.get(1).cloned(), ..self.io.clone() };
            let out = block_forward(self.model, self.index, &io, &mut Added { layers, added })?;
            let mut sum = Array::from_f32(0.0);
            for (out, cotangent) in [(Some(&out.hidden), hidden), (out.context.as_ref(), context)] {
                if let (Some(out), Some(cotangent)) = (out, cotangent) {
                    sum = sum.add(out.multiply(cotangent)?.sum(None)?)?;
                }
            }
            Ok(sum)
        };
        let (_, gradients) = value_and_gradients(&[&streams[..], zeros].concat(), run)?;
        transforms::eval(&gradients)?;
        let mut gradients = gradients.into_iter();
        let input = [gradients.next(), if streams.len() > 1 { gradients.next() } else { None }];
        Ok((gradients.collect(), input))
    }
}

/// Several arrays `[rows, …]` of one shape side by side, `[rows, arrays, elements]`.
fn flat(arrays: &[Array]) -> Result<Array> {
    let stacked = ops::stack(arrays, 1)?;
    Ok(stacked.reshape(&[stacked.dim(0), stacked.dim(1), -1])?)
}

/// Keeps every layer's input and changes nothing.
#[derive(Default)]
struct Inputs(BTreeMap<LayerId, Array>);

impl Tap for Inputs {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        self.0.insert(call.layer.id.clone(), call.input.clone());
        call.compute()
    }
}

/// Adds something to every layer's output.
struct Added<'a> {
    layers: &'a [&'a LayerId],
    added: &'a [Array],
}

impl Tap for Added<'_> {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        let output = call.compute()?;
        match self.layers.iter().position(|id| **id == call.layer.id) {
            Some(layer) => Ok(output.add(&self.added[layer])?),
            None => Ok(output),
        }
    }
}
