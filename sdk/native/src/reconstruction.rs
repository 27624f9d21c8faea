//! A block's calibration data as a plugin asks for it.
#![allow(unsafe_code, reason = "calls functions of the host")]

use std::ffi::c_void;
use std::marker::PhantomData;

use crate::abi::{self, Buf, Tensor};
use crate::view::{self, Shape};
use crate::{Error, Result};

/// Which rows a step learns from.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The rows, each less than [`Reconstruction::rows`].
    pub rows: &'a [u64],
    /// Share of the elements of the block's input and of every layer's input that full precision takes the place of (QDrop),
    /// and the seed of which; `None`: the block sees what the quantized blocks before it put out.
    pub drop: Option<(f32, u32)>,
}

/// What one layer computes with.
#[derive(Debug, Clone, Copy)]
pub struct LayerValues<'a> {
    /// The weight in place of the full-precision one, row-major `[out_features, in_features]`.
    pub weight: &'a [f32],
    /// Step sizes of its input, `[steps]`; `None`: the plan's.
    pub input_scale: Option<&'a [f32]>,
}

/// Derivatives of the error with respect to what one layer computes with, in the host's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerGradients<'a> {
    /// With respect to the weight, of its shape.
    pub weight: &'a [f32],
    /// With respect to the input's step sizes, `[steps]`; empty: not asked for.
    pub input_scale: &'a [f32],
}

/// A block's calibration data: what arrives at its layers, how large the error of its output is when they compute with
/// other values, and in which direction it falls. Only on the thread that the call came on.
pub struct Reconstruction<'a> {
    table: &'a abi::Reconstruction,
    /// Rows and columns of each layer's weight.
    shapes: Vec<[usize; 2]>,
    /// Planned timesteps of each layer's input.
    steps: Vec<usize>,
    here: PhantomData<*const ()>,
}

impl std::fmt::Debug for Reconstruction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconstruction").field("rows", &self.table.rows).finish_non_exhaustive()
    }
}

impl<'a> Reconstruction<'a> {
    /// The table of a call, of layers with these shapes and so many planned timesteps.
    pub(crate) fn new(table: &'a abi::Reconstruction, shapes: Vec<[usize; 2]>, steps: Vec<usize>) -> Self {
        Self { table, shapes, steps, here: PhantomData }
    }

    /// Rows to learn from, numbered from 0: images at timesteps.
    pub fn rows(&self) -> usize {
        self.table.rows as usize
    }

    /// The planned timestep of a row that there is.
    pub fn step(&self, row: usize) -> usize {
        if row >= self.rows() || self.table.steps.is_null() {
            return 0;
        }
        // SAFETY: the host gives the timesteps of all rows.
        unsafe { *self.table.steps.add(row) as usize }
    }

    /// Shows the input of every layer, row-major `[tokens, in_features]`, by its position in the block.
    ///
    /// # Errors
    /// Of the host, or of `visit`.
    pub fn inputs(&self, rows: &[u64], visit: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        struct Visitor<'v> {
            visit: &'v mut dyn FnMut(usize, &[f32]) -> Result<()>,
            result: Result<()>,
        }
        unsafe extern "C" fn shown(visitor: *mut c_void, layer: usize, input: *const Tensor) -> i32 {
            // SAFETY: the host passes on the visitor below, and a tensor that is valid for this call.
            let (visitor, input) = unsafe { (&mut *visitor.cast::<Visitor<'_>>(), &*input) };
            let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // SAFETY: as above.
                let values = unsafe { view::values::<f32>(input, "input")? };
                (visitor.visit)(layer, values)
            }));
            visitor.result = seen.unwrap_or_else(|panic| Err(crate::export::panicked(panic)));
            visitor.result.as_ref().map_or_else(Error::status, |()| abi::OK)
        }
        let mut visitor = Visitor { visit, result: Ok(()) };
        let mut error = Buf::empty();
        // SAFETY: as the header says; everything outlives the call.
        let status = unsafe {
            (self.table.inputs)(
                self.table.ctx,
                rows.as_ptr(),
                rows.len(),
                shown,
                (&raw mut visitor).cast(),
                &mut error,
            )
        };
        let said = answer(status, error);
        visitor.result?;
        said
    }

    /// Mean squared error of the block's output over a batch when its layers compute with these values, one of each, and
    /// its derivatives; `input_scales` says whether those with respect to step sizes of inputs are wanted too.
    ///
    /// # Errors
    /// [`Error::Invalid`] if something has another length than its layer, and what the host says.
    pub fn loss_and_gradients(
        &mut self,
        layers: &[LayerValues<'_>],
        batch: Batch<'_>,
        input_scales: bool,
    ) -> Result<(f32, Vec<LayerGradients<'_>>)> {
        let shapes = self.tensor_shapes();
        let values = self.values(layers, &shapes)?;
        let (drop, drop_seed) = batch.drop.unwrap_or((0.0, 0));
        let batch = abi::Batch {
            rows: batch.rows.as_ptr(),
            n_rows: batch.rows.len(),
            drop,
            drop_seed,
            input_scales: input_scales.into(),
            reserved: 0,
        };
        let (mut loss, mut error) = (f32::NAN, Buf::empty());
        let nothing = abi::LayerGradients { weight: view::nothing(), input_scale: view::nothing() };
        let mut found = vec![nothing; values.len()];
        // SAFETY: as the header says; lengths were checked above, and everything outlives the call.
        let status = unsafe {
            (self.table.loss_and_gradients)(
                self.table.ctx,
                values.as_ptr(),
                values.len(),
                &batch,
                &mut loss,
                found.as_mut_ptr(),
                &mut error,
            )
        };
        answer(status, error)?;
        let gradients = found.iter().map(|found| {
            // SAFETY: filled in by the host; valid until the next call, which borrows `self` again.
            unsafe {
                let weight = view::values(&found.weight, "gradients")?;
                let input_scale = match found.input_scale.data.is_null() {
                    true => &[],
                    false => view::values(&found.input_scale, "gradients")?,
                };
                Ok(LayerGradients { weight, input_scale })
            }
        });
        Ok((loss, gradients.collect::<Result<_>>()?))
    }

    /// The same error over rows that learning never sees.
    ///
    /// # Errors
    /// As above.
    pub fn held_out_loss(&self, layers: &[LayerValues<'_>]) -> Result<f32> {
        let shapes = self.tensor_shapes();
        let values = self.values(layers, &shapes)?;
        let (mut loss, mut error) = (f32::NAN, Buf::empty());
        // SAFETY: as above.
        let status = unsafe {
            (self.table.held_out_loss)(self.table.ctx, values.as_ptr(), values.len(), &mut loss, &mut error)
        };
        answer(status, error).map(|()| loss)
    }

    fn tensor_shapes(&self) -> Vec<(Shape, Shape)> {
        let shape = |(s, &steps): (&[usize; 2], &usize)| (Shape::matrix(s[0], s[1]), Shape::vector(steps));
        self.shapes.iter().zip(&self.steps).map(shape).collect()
    }

    fn values(&self, layers: &[LayerValues<'_>], shapes: &[(Shape, Shape)]) -> Result<Vec<abi::LayerValues>> {
        if layers.len() != self.shapes.len() {
            return Err(Error::invalid(format!(
                "values of {} layers, expected {}",
                layers.len(),
                self.shapes.len()
            )));
        }
        let value = |(at, layer): (usize, &LayerValues<'_>)| {
            let ([rows, columns], steps) = (self.shapes[at], self.steps[at]);
            let scale = layer.input_scale.map_or(steps, <[f32]>::len);
            if layer.weight.len() != rows * columns || scale != steps {
                return Err(Error::invalid(format!(
                    "layer {at} has {} weights and {scale} step sizes, expected {} and {steps}",
                    layer.weight.len(),
                    rows * columns
                )));
            }
            Ok(abi::LayerValues {
                weight: shapes[at].0.view(layer.weight),
                input_scale: layer.input_scale.map_or_else(view::nothing, |s| shapes[at].1.view(s)),
            })
        };
        layers.iter().enumerate().map(value).collect()
    }
}

fn answer(status: i32, error: Buf) -> Result<()> {
    // SAFETY: the host filled it in, or left it empty.
    let text = unsafe { view::taken(error, view::MESSAGE_BYTES) };
    if status == abi::OK { Ok(()) } else { Err(Error::of_status(status, view::message(&text))) }
}
