//! A block's calibration data behind functions that a library calls: it learns by the block's output without MLX.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, ThreadId};

use mlx_rs::{Array, transforms};
use taq_plugin::abi::{self, Buf, LayerGradients, LayerValues, Tensor, Visit};
use taq_plugin::view::{self, Shape};

use crate::quant::{InputGrids, QDrop, QuantizedLayer};
use crate::{Batch, BlockJob, Context, Error, LOSS_STRIDE, LayerJob, Result};

/// One call of a rounder of blocks.
pub(super) struct BlockCall<'a> {
    job: &'a BlockJob<'a>,
    cx: &'a Context,
    /// MLX is driven from one thread.
    thread: ThreadId,
    /// Shape of each layer's weight, and timesteps of its input.
    shapes: Vec<([usize; 2], usize)>,
    /// The same as the ABI has them.
    axes: Vec<[Shape; 2]>,
    /// The derivatives of the last call, which the library looks into.
    gradients: RefCell<Vec<Array>>,
    steps: Vec<u32>,
    calls: Cell<usize>,
    losses: RefCell<Vec<f32>>,
    /// The first error of the host's.
    failed: RefCell<Option<Error>>,
}

/// What one of these functions may say: a mistake of the library, or an error of the host.
enum Wrong {
    Library(String),
    Host(Error),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl From<taq_plugin::Error> for Wrong {
    fn from(error: taq_plugin::Error) -> Self {
        Self::Library(error.to_string())
    }
}

impl From<mlx_rs::error::Exception> for Wrong {
    fn from(error: mlx_rs::error::Exception) -> Self {
        Self::Host(error.into())
    }
}

impl<'a> BlockCall<'a> {
    pub(super) fn new(job: &'a BlockJob<'a>, cx: &'a Context) -> Self {
        let rows = job.reconstruction.rows();
        let shape = |l: &LayerJob| ([l.spec.out_features, l.spec.in_features], l.input.steps());
        let shapes: Vec<_> = job.layers.iter().map(shape).collect();
        let axes =
            shapes.iter().map(|&([rows, columns], n)| [Shape::matrix(rows, columns), Shape::vector(n)]);
        Self {
            job,
            cx,
            thread: thread::current().id(),
            axes: axes.collect(),
            gradients: RefCell::new(Vec::new()),
            shapes,
            steps: (0..rows).map(|row| job.reconstruction.step(row) as u32).collect(),
            calls: Cell::new(0),
            losses: RefCell::new(Vec::new()),
            failed: RefCell::new(None),
        }
    }

    /// What the library gets; valid while this stays where it is.
    pub(super) fn table(&self) -> abi::Reconstruction {
        abi::Reconstruction {
            size: size_of::<abi::Reconstruction>() as u32,
            reserved: 0,
            ctx: (&raw const *self).cast_mut().cast(),
            rows: self.steps.len() as u64,
            steps: self.steps.as_ptr(),
            inputs,
            loss_and_gradients,
            held_out_loss,
        }
    }

    /// The losses of every [`LOSS_STRIDE`]th call, or the error.
    pub(super) fn end(self, called: Result<()>) -> Result<Vec<f32>> {
        match (called, self.failed.into_inner()) {
            (Err(_), Some(own)) => Err(own),
            (Err(said), None) => Err(said),
            (Ok(()), _) => Ok(self.losses.into_inner()),
        }
    }

    /// Numbers of rows, checked.
    fn rows(&self, rows: *const u64, count: usize) -> Result<Vec<usize>, Wrong> {
        let refuse = |reason: String| Err(Wrong::Library(reason));
        if count == 0 || rows.is_null() || count > self.steps.len() * 64 {
            return refuse(format!("a batch has {count} rows, of {} to learn from", self.steps.len()));
        }
        // SAFETY: the library gives so many numbers.
        let rows = unsafe { std::slice::from_raw_parts(rows, count) };
        match rows.iter().find(|r| **r >= self.steps.len() as u64) {
            Some(row) => refuse(format!("there is no row {row}, of {} to learn from", self.steps.len())),
            None => Ok(rows.iter().map(|r| *r as usize).collect()),
        }
    }

    /// What the layers compute with.
    fn layers(&self, values: *const LayerValues, count: usize) -> Result<Vec<QuantizedLayer>, Wrong> {
        if values.is_null() || count != self.shapes.len() {
            return Err(Wrong::Library(format!("values of {count} layers, expected {}", self.shapes.len())));
        }
        // SAFETY: the library gives so many.
        let values = unsafe { std::slice::from_raw_parts(values, count) };
        let layers = self.job.layers.iter().zip(&self.shapes).zip(values);
        layers
            .map(|((job, (shape, steps)), values)| {
                let what = job.spec.id.as_str();
                let weight = array(&values.weight, &shape.map(|n| n as i32), what)?;
                let mut input = job.input.clone();
                if !values.input_scale.data.is_null() {
                    let scale = array(&values.input_scale, &[*steps as i32], what)?;
                    input = InputGrids { scale, ..input };
                }
                Ok(QuantizedLayer { weight, input, bias: None })
            })
            .collect()
    }

    fn inputs(&self, rows: (*const u64, usize), visit: Visit, visitor: *mut c_void) -> Result<(), Wrong> {
        let rows = self.rows(rows.0, rows.1)?;
        let mut stopped = None;
        self.job.reconstruction.inputs(&rows, &mut |layer, x| {
            if stopped.is_some() {
                return Ok(());
            }
            let values = crate::quant::to_vec(x)?;
            let columns = self.shapes[layer].0[1];
            let shape = Shape::matrix(values.len() / columns.max(1), columns);
            // SAFETY: as the ABI says; the tensor is valid during the call.
            let status = unsafe { visit(visitor, layer, &shape.view(&values)) };
            stopped = (status != abi::OK).then_some(status);
            Ok(())
        })?;
        match stopped {
            Some(status) => Err(Wrong::Library(format!("the visit ended with status {status}"))),
            None => Ok(()),
        }
    }

    fn loss_and_gradients(
        &self,
        values: (*const LayerValues, usize),
        batch: *const abi::Batch,
        loss: *mut f32,
        gradients: *mut LayerGradients,
    ) -> Result<(), Wrong> {
        let layers = self.layers(values.0, values.1)?;
        if batch.is_null() || loss.is_null() || gradients.is_null() {
            return Err(Wrong::Library("the batch, or the room for loss and gradients, is null".into()));
        }
        // SAFETY: not null, and the library's.
        let batch = unsafe { &*batch };
        let rows = self.rows(batch.rows, batch.n_rows)?;
        if !(0.0..=1.0).contains(&batch.drop) {
            return Err(Wrong::Library(format!("drop is {}, expected 0 to 1", batch.drop)));
        }
        let drop = (batch.drop > 0.0).then_some(QDrop { probability: batch.drop, seed: batch.drop_seed });
        let (value, found) = self.job.reconstruction.loss_and_grads(&layers, Batch { rows: &rows, drop })?;
        // Not before the next ones are there: the library may compute with the old ones while it asks.
        let mut arrays = vec![value.contiguous()?];
        for found in &found {
            arrays.push(found.weight.contiguous()?);
            if batch.input_scales != 0 {
                arrays.push(found.scale.contiguous()?);
            }
        }
        transforms::eval(&arrays)?;
        let value = numbers(arrays.first(), 1)?[0];
        // SAFETY: room for every layer, as the ABI says.
        let room = unsafe { std::slice::from_raw_parts_mut(gradients, self.shapes.len()) };
        let mut next = arrays[1..].iter();
        for (at, room) in room.iter_mut().enumerate() {
            let ([rows, columns], steps) = self.shapes[at];
            room.weight = self.axes[at][0].view(numbers(next.next(), rows * columns)?);
            room.input_scale = match batch.input_scales {
                0 => view::nothing(),
                _ => self.axes[at][1].view(numbers(next.next(), steps)?),
            };
        }
        self.gradients.replace(arrays);
        // SAFETY: not null, and the library's.
        unsafe { *loss = value };
        if self.calls.get().is_multiple_of(LOSS_STRIDE) {
            self.losses.borrow_mut().push(value);
        }
        self.calls.set(self.calls.get() + 1);
        Ok(())
    }

    fn held_out_loss(&self, values: (*const LayerValues, usize), loss: *mut f32) -> Result<(), Wrong> {
        let layers = self.layers(values.0, values.1)?;
        if loss.is_null() {
            return Err(Wrong::Library("the room for the loss is null".into()));
        }
        let value = self.job.reconstruction.held_out_loss(&layers)?;
        // SAFETY: not null, and the library's.
        unsafe { *loss = value };
        Ok(())
    }
}

/// A tensor of the library as an array of this shape.
fn array(tensor: &Tensor, shape: &[i32], layer: &str) -> Result<Array, Wrong> {
    // SAFETY: the library's tensor, valid during the call.
    let values = unsafe { view::values::<f32>(tensor, layer)? };
    let expected: usize = shape.iter().map(|n| *n as usize).product();
    if values.len() != expected {
        let found = values.len();
        return Err(Wrong::Library(format!("{layer}: {found} numbers, expected {expected}")));
    }
    Ok(Array::from_slice(values, shape))
}

/// The numbers of an evaluated array, so many.
fn numbers(array: Option<&Array>, expected: usize) -> Result<&[f32], Wrong> {
    let failed = |what: String| Wrong::Host(Error::Unsupported { what });
    let array = array.ok_or_else(|| failed("a layer without gradients".into()))?;
    let values = array.try_as_slice::<f32>();
    let values = values.map_err(|e| failed(format!("gradients that are no f32 numbers: {e}")))?;
    if values.len() == expected {
        return Ok(values);
    }
    Err(failed(format!("{} gradients where {expected} are expected", values.len())))
}

/// Does the work of one function; what goes wrong becomes a status and a text, and is remembered if it is the host's.
fn answer(ctx: *mut c_void, error: *mut Buf, work: impl FnOnce(&BlockCall<'_>) -> Result<(), Wrong>) -> i32 {
    // SAFETY: `ctx` is that of `BlockCall::table`, which is alive during the call of the library.
    let call = unsafe { &*ctx.cast::<BlockCall<'_>>() };
    let explain = |text: &str| {
        // SAFETY: the library gives room for an error, or null.
        unsafe { view::explain(error, text) };
    };
    if thread::current().id() != call.thread {
        explain("this function is only for the thread that the call came on");
        return abi::INVALID;
    }
    let done = catch_unwind(AssertUnwindSafe(|| {
        call.cx.check()?;
        work(call)
    }));
    match done {
        Ok(Ok(())) => abi::OK,
        Ok(Err(Wrong::Library(reason))) => {
            explain(&reason);
            abi::INVALID
        }
        Ok(Err(Wrong::Host(own))) => {
            explain(&own.to_string());
            let status = if matches!(own, Error::Cancelled) { abi::CANCELLED } else { abi::FAILED };
            call.failed.borrow_mut().get_or_insert(own);
            status
        }
        Err(_) => {
            explain("the host has a defect: it panicked");
            abi::FAILED
        }
    }
}

unsafe extern "C" fn inputs(
    ctx: *mut c_void,
    rows: *const u64,
    n_rows: usize,
    visit: Visit,
    visitor: *mut c_void,
    error: *mut Buf,
) -> i32 {
    answer(ctx, error, |call| call.inputs((rows, n_rows), visit, visitor))
}

unsafe extern "C" fn loss_and_gradients(
    ctx: *mut c_void,
    layers: *const LayerValues,
    n_layers: usize,
    batch: *const abi::Batch,
    loss: *mut f32,
    gradients: *mut LayerGradients,
    error: *mut Buf,
) -> i32 {
    answer(ctx, error, |call| call.loss_and_gradients((layers, n_layers), batch, loss, gradients))
}

unsafe extern "C" fn held_out_loss(
    ctx: *mut c_void,
    layers: *const LayerValues,
    n_layers: usize,
    loss: *mut f32,
    error: *mut Buf,
) -> i32 {
    answer(ctx, error, |call| call.held_out_loss((layers, n_layers), loss))
}
