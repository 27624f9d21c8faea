//! Normalisation over the last axis, with an affine step that groups of rows share.
//!
//! y = (x - mean) / √(var + eps) · (offset + w) + b, for layer norm (Ba et al., arXiv:1607.06450),
//! its modulated form (adaLN of Peebles and Xie, arXiv:2212.09748: one `w` and `b` per batch
//! element, offset 1) and, without mean and `b`, RMS norm (Zhang and Sennrich, arXiv:1910.07467).

mod layer_norm;
mod modulate;
mod rms_norm;
mod rows;

use mlx_rs::{Array, Dtype, error::Exception};
use rayon::prelude::*;

pub use layer_norm::layer_norm;
pub use modulate::layer_norm_modulate;
pub use rms_norm::rms_norm;

use super::gated_add::sum_rows;
use crate::{HostKernel, View, ViewMut, Vjp};

/// Rows per task. Part of the order of summation, so not a tuning knob.
const ROWS: usize = 32;

/// Which normalisation.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    name: &'static str,
    gradient: &'static str,
    /// Whether the mean is subtracted.
    centred: bool,
    /// Added to the weight.
    offset: f32,
    eps: f32,
}

/// Inputs x [.., C], w [G, C] or [C], b like w, for G groups of consecutive rows.
fn call(form: Form, x: &Array, w: &Array, b: &Array) -> Result<Array, Exception> {
    HostKernel::new(form.name, move |inputs, outputs| forward(form, inputs, outputs))
        .with_vjp(move |problem| vjp(form, problem))
        .call_f32(&[x, w, b], x.shape())
}

fn forward(form: Form, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [x, w, b] = inputs else { unreachable!("three inputs") };
    let (group, width) = group_size(x, w);
    let affine = w.f32().par_chunks(width).zip(b.f32().par_chunks(width));
    let groups = x.f32().par_chunks(group).zip(affine);
    outputs[0].f32().par_chunks_mut(group).zip(groups).for_each(|(y, (x, (w, b)))| {
        y.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .for_each(|(y, x)| rows::forward(x, w, b, y, form.centred, form.offset, form.eps));
    });
}

/// Elements of a group and of a row.
fn group_size(x: &View<'_>, w: &View<'_>) -> (usize, usize) {
    let width = w.shape().last().map_or(1, |&c| c as usize);
    (x.f32().len() / (w.f32().len() / width), width)
}

fn vjp(form: Form, problem: &Vjp) -> Result<Vec<Array>, Exception> {
    let (x, w, b) = (&problem.primals[0], &problem.primals[1], &problem.primals[2]);
    let g = &problem.cotangents[0];
    let affine = problem.wants(1) || problem.wants(2);
    let kernel =
        HostKernel::new(form.gradient, move |inputs, outputs| backward(form, affine, inputs, outputs));
    if !affine {
        return Ok(vec![kernel.call_f32(&[x, w, g], x.shape())?]);
    }
    let f32 = Dtype::Float32;
    let all = kernel.call(&[x, w, g], &[(x.shape(), f32), (w.shape(), f32), (b.shape(), f32)])?;
    problem.pick(&all)
}

fn backward(form: Form, affine: bool, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [x, w, g] = inputs else { unreachable!("three inputs") };
    let (group, width) = group_size(x, w);
    let groups = x.f32().par_chunks(group).zip(g.f32().par_chunks(group)).zip(w.f32().par_chunks(width));
    if !affine {
        outputs[0].f32().par_chunks_mut(group).zip(groups).for_each(|(dx, ((x, g), w))| {
            dx.par_chunks_mut(ROWS * width)
                .zip(x.par_chunks(ROWS * width).zip(g.par_chunks(ROWS * width)))
                .for_each(|(dx, (x, g))| {
                    rows::backward(x, w, g, dx, form.centred, form.offset, form.eps);
                });
        });
        return;
    }
    let [dx, dw, db] = outputs else { unreachable!("three outputs") };
    let tasks = (group / width).div_ceil(ROWS);
    let outputs = dx
        .f32()
        .par_chunks_mut(group)
        .zip(dw.f32().par_chunks_mut(width).zip(db.f32().par_chunks_mut(width)));
    outputs.zip(groups).for_each(|((dx, (dw, db)), ((x, g), w))| {
        let mut weights = vec![0.0f32; tasks * width];
        let mut biases = vec![0.0f32; tasks * width];
        dx.par_chunks_mut(ROWS * width)
            .zip(weights.par_chunks_mut(width).zip(biases.par_chunks_mut(width)))
            .zip(x.par_chunks(ROWS * width).zip(g.par_chunks(ROWS * width)))
            .for_each(|((dx, (dw, db)), (x, g))| {
                rows::backward_affine(x, w, g, dx, dw, db, form.centred, form.offset, form.eps);
            });
        sum_rows(&weights, dw);
        sum_rows(&biases, db);
    });
}
