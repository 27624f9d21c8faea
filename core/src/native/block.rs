//! A block of the engine as a library may ask about it (`taq_plugin::host::BlockCall`): it learns by the block's output
//! without MLX.

use std::cell::{Cell, RefCell};

use mlx_rs::{Array, transforms};
use taq_plugin::abi;
use taq_plugin::host::BlockData;

use crate::quant::{InputGrids, QDrop, QuantizedLayer, to_vec};
use crate::{Batch, BlockJob, Context, Error, LOSS_STRIDE, LayerJob, Result};

/// A block's job, for one call of a rounder.
pub(super) struct NativeBlock<'a> {
    job: &'a BlockJob<'a>,
    cx: &'a Context,
    calls: Cell<usize>,
    losses: RefCell<Vec<f32>>,
}

/// Evaluated derivatives: of the loss with respect to every layer's weight and, if they were asked for, step sizes of the input.
pub(super) struct Gradients {
    weights: Vec<Array>,
    input_scales: Vec<Array>,
}

impl<'a> NativeBlock<'a> {
    pub(super) fn new(job: &'a BlockJob<'a>, cx: &'a Context) -> Self {
        Self { job, cx, calls: Cell::new(0), losses: RefCell::new(Vec::new()) }
    }

    /// The planned timesteps of the rows to learn from.
    pub(super) fn steps(&self) -> Vec<u32> {
        let reconstruction = self.job.reconstruction;
        (0..reconstruction.rows()).map(|row| reconstruction.step(row) as u32).collect()
    }

    /// The losses of every [`LOSS_STRIDE`]th call.
    pub(super) fn losses(self) -> Vec<f32> {
        self.losses.into_inner()
    }

    /// What the layers compute with, each copied once.
    fn layers(&self, values: &[taq_plugin::LayerValues<'_>]) -> Vec<QuantizedLayer> {
        let layer = |(job, values): (&LayerJob, &taq_plugin::LayerValues<'_>)| {
            let shape = [job.spec.out_features as i32, job.spec.in_features as i32];
            let weight = Array::from_slice(values.weight, &shape);
            let mut input = job.input.clone();
            if let Some(scale) = values.input_scale {
                input = InputGrids { scale: Array::from_slice(scale, &[scale.len() as i32]), ..input };
            }
            QuantizedLayer { weight, input, bias: None }
        };
        self.job.layers.iter().zip(values).map(layer).collect()
    }
}

fn numbers(rows: &[u64]) -> Vec<usize> {
    rows.iter().map(|row| *row as usize).collect()
}

fn slice(array: &Array) -> Result<&[f32]> {
    let failed = |e| Error::Unsupported { what: format!("gradients that are no f32 numbers: {e}") };
    array.try_as_slice::<f32>().map_err(failed)
}

impl BlockData for NativeBlock<'_> {
    type Error = Error;
    type Gradients = Gradients;

    fn status(error: &Error) -> i32 {
        if matches!(error, Error::Cancelled) { abi::CANCELLED } else { abi::FAILED }
    }

    fn check(&self) -> Result<()> {
        self.cx.check()
    }

    fn inputs(&self, rows: &[u64], visit: &mut dyn FnMut(usize, &[f32]) -> bool) -> Result<()> {
        let mut going = true;
        self.job.reconstruction.inputs(&numbers(rows), &mut |layer, x| {
            going = going && visit(layer, &to_vec(x)?);
            Ok(())
        })
    }

    fn loss_and_gradients(
        &self,
        layers: &[taq_plugin::LayerValues<'_>],
        batch: taq_plugin::Batch<'_>,
        input_scales: bool,
    ) -> Result<(f32, Gradients)> {
        let drop = batch.drop.map(|(probability, seed)| QDrop { probability, seed });
        let batch = Batch { rows: &numbers(batch.rows), drop };
        let (loss, found) = self.job.reconstruction.loss_and_grads(&self.layers(layers), batch)?;
        let mut gradients = Gradients { weights: Vec::new(), input_scales: Vec::new() };
        for found in &found {
            gradients.weights.push(found.weight.contiguous()?);
            if input_scales {
                gradients.input_scales.push(found.scale.contiguous()?);
            }
        }
        transforms::eval([&loss].into_iter().chain(&gradients.weights).chain(&gradients.input_scales))?;
        let loss = loss
            .try_item_exact::<f32>()
            .map_err(|e| Error::Unsupported { what: format!("a loss that is no f32 number: {e}") })?;
        if self.calls.get().is_multiple_of(LOSS_STRIDE) {
            self.losses.borrow_mut().push(loss);
        }
        self.calls.set(self.calls.get() + 1);
        Ok((loss, gradients))
    }

    fn of_layer(gradients: &Gradients, layer: usize) -> Result<taq_plugin::LayerGradients<'_>> {
        let missing = || Error::Unsupported { what: "a layer without gradients".into() };
        let weight = slice(gradients.weights.get(layer).ok_or_else(missing)?)?;
        let input_scale = match gradients.input_scales.get(layer) {
            Some(scale) => slice(scale)?,
            None => &[],
        };
        Ok(taq_plugin::LayerGradients { weight, input_scale })
    }

    fn held_out_loss(&self, layers: &[taq_plugin::LayerValues<'_>]) -> Result<f32> {
        self.job.reconstruction.held_out_loss(&self.layers(layers))
    }
}
