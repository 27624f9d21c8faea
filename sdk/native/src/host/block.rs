//! The host's side of [`abi::Reconstruction`]: what a plugin asks about a block is checked, put to whoever has the block
//! ([`BlockData`]), and answered as the ABI says. taq puts its engine behind it, the conformance suites a small problem.
#![allow(unsafe_code, reason = "functions that a plugin calls")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, ThreadId};

use super::LayerData;
use crate::abi::{self, Buf, Visit};
use crate::view::{self, Shape};
use crate::{Batch, LayerGradients, LayerValues};

/// How often a row may stand in one batch, on average.
const REPEATS: usize = 64;

/// A block's calibration data, by whoever has it. What arrives here is checked: rows that there are, and values of all
/// layers, each of its length.
pub trait BlockData {
    /// What may go wrong.
    type Error: Display;
    /// Derivatives with respect to what all layers compute with; kept until the next ones are there.
    type Gradients;

    /// The status of the ABI that a plugin is told of an error.
    fn status(error: &Self::Error) -> i32;

    /// Asked before every question: whether the call may go on.
    ///
    /// # Errors
    /// If not.
    fn check(&self) -> Result<(), Self::Error>;

    /// Shows the input of every layer, row-major `[tokens, in_features]`, until `visit` says no.
    ///
    /// # Errors
    /// What went wrong.
    fn inputs(&self, rows: &[u64], visit: &mut dyn FnMut(usize, &[f32]) -> bool) -> Result<(), Self::Error>;

    /// The error of the block's output over a batch with these values, and its derivatives; those with respect to step sizes of
    /// inputs if they are asked for.
    ///
    /// # Errors
    /// What went wrong.
    fn loss_and_gradients(
        &self,
        layers: &[LayerValues<'_>],
        batch: Batch<'_>,
        input_scales: bool,
    ) -> Result<(f32, Self::Gradients), Self::Error>;

    /// The derivatives of one layer; step sizes may be left empty unless they were asked for.
    ///
    /// # Errors
    /// What went wrong.
    fn of_layer(gradients: &Self::Gradients, layer: usize) -> Result<LayerGradients<'_>, Self::Error>;

    /// The same error over rows that learning never sees.
    ///
    /// # Errors
    /// What went wrong.
    fn held_out_loss(&self, layers: &[LayerValues<'_>]) -> Result<f32, Self::Error>;
}

/// A layer's lengths.
struct Axes {
    id: String,
    weights: usize,
    steps: usize,
    weight: Shape,
    input_scale: Shape,
}

/// One call of a rounder of blocks.
pub struct BlockCall<'a, D: BlockData> {
    data: &'a D,
    /// The host's functions are only for this one.
    thread: ThreadId,
    layers: Vec<Axes>,
    /// The planned timestep of each row.
    steps: Vec<u32>,
    /// The derivatives of the last question, which the plugin looks into.
    gradients: RefCell<Option<D::Gradients>>,
    /// The first error of the host's own.
    failed: RefCell<Option<D::Error>>,
}

/// Why a question has no answer: a mistake of the plugin, or an error of the host.
enum Wrong<E> {
    Plugin(String),
    Host(E),
}

impl<E> From<crate::Error> for Wrong<E> {
    fn from(error: crate::Error) -> Self {
        Self::Plugin(error.to_string())
    }
}

impl<'a, D: BlockData> BlockCall<'a, D> {
    /// A call about these layers; `steps` are the planned timesteps of the rows to learn from.
    pub fn new<'l>(data: &'a D, layers: impl Iterator<Item = &'l LayerData>, steps: Vec<u32>) -> Self {
        let axes = |layer: &LayerData| Axes {
            id: layer.spec.id.to_string(),
            weights: layer.weight.len(),
            steps: layer.input_scale.len(),
            weight: Shape::matrix(layer.spec.out_features, layer.spec.in_features),
            input_scale: Shape::vector(layer.input_scale.len()),
        };
        Self {
            data,
            thread: thread::current().id(),
            layers: layers.map(axes).collect(),
            steps,
            gradients: RefCell::new(None),
            failed: RefCell::new(None),
        }
    }

    /// What the plugin gets; valid while this stays where it is.
    pub fn table(&self) -> abi::Reconstruction {
        abi::Reconstruction {
            size: size_of::<abi::Reconstruction>() as u32,
            reserved: 0,
            ctx: (&raw const *self).cast_mut().cast(),
            rows: self.steps.len() as u64,
            steps: self.steps.as_ptr(),
            inputs: inputs::<D>,
            loss_and_gradients: loss_and_gradients::<D>,
            held_out_loss: held_out_loss::<D>,
        }
    }

    /// The first error of the host's own, whatever the plugin made of it.
    pub fn failed(self) -> Option<D::Error> {
        self.failed.into_inner()
    }

    /// Numbers of rows, checked.
    ///
    /// # Safety
    /// The pointer is null or to so many numbers.
    unsafe fn rows<'v>(&self, rows: *const u64, count: usize) -> Result<&'v [u64], Wrong<D::Error>> {
        let there = self.steps.len();
        if count == 0 || rows.is_null() || count > there * REPEATS {
            return Err(Wrong::Plugin(format!("a batch has {count} rows, of {there} to learn from")));
        }
        // SAFETY: the caller's word.
        let rows = unsafe { std::slice::from_raw_parts(rows, count) };
        match rows.iter().find(|r| **r >= there as u64) {
            Some(row) => Err(Wrong::Plugin(format!("there is no row {row}, of {there} to learn from"))),
            None => Ok(rows),
        }
    }

    /// What the layers compute with, checked.
    ///
    /// # Safety
    /// The pointer is null or to so many values, whose tensors are what the ABI says.
    unsafe fn values<'v>(
        &self,
        values: *const abi::LayerValues,
        count: usize,
    ) -> Result<Vec<LayerValues<'v>>, Wrong<D::Error>> {
        if values.is_null() || count != self.layers.len() {
            return Err(Wrong::Plugin(format!("values of {count} layers, expected {}", self.layers.len())));
        }
        // SAFETY: the caller's word.
        let values = unsafe { std::slice::from_raw_parts(values, count) };
        let numbers = |tensor: &abi::Tensor, layer: &Axes, expected: usize| {
            // SAFETY: the caller's word.
            let numbers: &[f32] = unsafe { view::values(tensor, &layer.id)? };
            if numbers.len() == expected {
                return Ok(numbers);
            }
            let (id, found) = (&layer.id, numbers.len());
            Err(Wrong::Plugin(format!("{id}: {found} numbers, expected {expected}")))
        };
        let value = |(values, layer): (&abi::LayerValues, &Axes)| {
            let weight = numbers(&values.weight, layer, layer.weights)?;
            let input_scale = match values.input_scale.data.is_null() {
                true => None,
                false => Some(numbers(&values.input_scale, layer, layer.steps)?),
            };
            Ok(LayerValues { weight, input_scale })
        };
        values.iter().zip(&self.layers).map(value).collect()
    }

    /// Fills in the views of all layers' derivatives.
    fn show(
        &self,
        gradients: &D::Gradients,
        input_scales: bool,
        room: &mut [abi::LayerGradients],
    ) -> Result<(), Wrong<D::Error>> {
        for (at, (room, layer)) in room.iter_mut().zip(&self.layers).enumerate() {
            let found = D::of_layer(gradients, at).map_err(Wrong::Host)?;
            let steps = if input_scales { layer.steps } else { found.input_scale.len() };
            if (found.weight.len(), found.input_scale.len()) != (layer.weights, steps) {
                return Err(Wrong::Plugin(format!("the host has a defect: derivatives of {}", layer.id)));
            }
            room.weight = layer.weight.view(found.weight);
            room.input_scale = match input_scales {
                true => layer.input_scale.view(found.input_scale),
                false => view::nothing(),
            };
        }
        Ok(())
    }
}

/// Does the work of one function; what goes wrong becomes a status and a text, and is remembered if it is the host's.
///
/// # Safety
/// `ctx` is that of [`BlockCall::table`], which is alive during the call; `error` is null or an empty buffer.
unsafe fn answer<D: BlockData>(
    ctx: *mut c_void,
    error: *mut Buf,
    work: impl FnOnce(&BlockCall<'_, D>) -> Result<(), Wrong<D::Error>>,
) -> i32 {
    // SAFETY: the caller's word.
    let call = unsafe { &*ctx.cast::<BlockCall<'_, D>>() };
    let explain = |text: &str| {
        // SAFETY: the caller's word.
        unsafe { view::explain(error, text) };
    };
    if thread::current().id() != call.thread {
        explain("this function is only for the thread that the call came on");
        return abi::INVALID;
    }
    let done = catch_unwind(AssertUnwindSafe(|| {
        call.data.check().map_err(Wrong::Host)?;
        work(call)
    }));
    match done {
        Ok(Ok(())) => abi::OK,
        Ok(Err(Wrong::Plugin(reason))) => {
            explain(&reason);
            abi::INVALID
        }
        Ok(Err(Wrong::Host(own))) => {
            explain(&own.to_string());
            let status = D::status(&own);
            call.failed.borrow_mut().get_or_insert(own);
            status
        }
        Err(_) => {
            explain("the host has a defect: it panicked");
            abi::FAILED
        }
    }
}

unsafe extern "C" fn inputs<D: BlockData>(
    ctx: *mut c_void,
    rows: *const u64,
    n_rows: usize,
    visit: Visit,
    visitor: *mut c_void,
    error: *mut Buf,
) -> i32 {
    let work = |call: &BlockCall<'_, D>| {
        // SAFETY: what the plugin gives, as the ABI says.
        let rows = unsafe { call.rows(rows, n_rows)? };
        let mut status = abi::OK;
        let mut show = |layer: usize, values: &[f32]| {
            let columns = call.layers.get(layer).map_or(1, |l| l.weight.columns().max(1));
            let shape = Shape::matrix(values.len() / columns, columns);
            // SAFETY: as the ABI says; the tensor is valid during the call.
            status = unsafe { visit(visitor, layer, &shape.view(values)) };
            status == abi::OK
        };
        call.data.inputs(rows, &mut show).map_err(Wrong::Host)?;
        match status {
            abi::OK => Ok(()),
            other => Err(Wrong::Plugin(format!("the visit ended with status {other}"))),
        }
    };
    // SAFETY: what the plugin was given, and what it gives as the ABI says.
    unsafe { answer::<D>(ctx, error, work) }
}

unsafe extern "C" fn loss_and_gradients<D: BlockData>(
    ctx: *mut c_void,
    layers: *const abi::LayerValues,
    n_layers: usize,
    batch: *const abi::Batch,
    loss: *mut f32,
    gradients: *mut abi::LayerGradients,
    error: *mut Buf,
) -> i32 {
    let work = |call: &BlockCall<'_, D>| {
        // SAFETY: what the plugin gives, as the ABI says.
        let values = unsafe { call.values(layers, n_layers)? };
        if batch.is_null() || loss.is_null() || gradients.is_null() {
            let reason = "the batch, or the room for loss and gradients, is null";
            return Err(Wrong::Plugin(reason.into()));
        }
        // SAFETY: not null, and the plugin's; there is room for every layer.
        let (batch, room) = unsafe { (&*batch, std::slice::from_raw_parts_mut(gradients, n_layers)) };
        if !(0.0..=1.0).contains(&batch.drop) {
            return Err(Wrong::Plugin(format!("drop is {}, expected 0 to 1", batch.drop)));
        }
        // SAFETY: what the plugin gives, as the ABI says.
        let rows = unsafe { call.rows(batch.rows, batch.n_rows)? };
        let (drop, input_scales) =
            ((batch.drop > 0.0).then_some((batch.drop, batch.drop_seed)), batch.input_scales != 0);
        let found = call.data.loss_and_gradients(&values, Batch { rows, drop }, input_scales);
        let (value, found) = found.map_err(Wrong::Host)?;
        // Not before the next ones are there: the plugin may compute with the old ones while it asks. Then they are gone.
        let mut kept = call.gradients.borrow_mut();
        call.show(kept.insert(found), input_scales, room)?;
        // SAFETY: not null, and the plugin's.
        unsafe { *loss = value };
        Ok(())
    };
    // SAFETY: what the plugin was given, and what it gives as the ABI says.
    unsafe { answer::<D>(ctx, error, work) }
}

unsafe extern "C" fn held_out_loss<D: BlockData>(
    ctx: *mut c_void,
    layers: *const abi::LayerValues,
    n_layers: usize,
    loss: *mut f32,
    error: *mut Buf,
) -> i32 {
    let work = |call: &BlockCall<'_, D>| {
        // SAFETY: what the plugin gives, as the ABI says.
        let values = unsafe { call.values(layers, n_layers)? };
        if loss.is_null() {
            return Err(Wrong::Plugin("the room for the loss is null".into()));
        }
        let value = call.data.held_out_loss(&values).map_err(Wrong::Host)?;
        // SAFETY: not null, and the plugin's.
        unsafe { *loss = value };
        Ok(())
    };
    // SAFETY: what the plugin was given, and what it gives as the ABI says.
    unsafe { answer::<D>(ctx, error, work) }
}
