//! A gated residual: x + gate · y, the gate being one row per batch element.

use mlx_rs::{Array, Dtype, error::Exception};
use rayon::prelude::*;

use crate::{
    HostKernel, View, ViewMut, Vjp, host,
    simd::{dispatch, math::fma},
};

/// Rows per task. Part of the order of summation, so not a tuning knob.
const ROWS: usize = 32;

#[inline(always)]
fn forward_body<const FMA: bool>(x: &[f32], gate: &[f32], y: &[f32], out: &mut [f32]) {
    let width = gate.len();
    for ((out, x), y) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(y.chunks_exact(width)) {
        for (((out, x), y), gate) in out.iter_mut().zip(x).zip(y).zip(gate) {
            *out = fma::<FMA>(*gate, *y, *x);
        }
    }
}

#[inline(always)]
fn backward_body<const FMA: bool>(gate: &[f32], y: &[f32], g: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
    let width = gate.len();
    dgate.fill(0.0);
    for ((dy, y), g) in dy.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(g.chunks_exact(width)) {
        for ((((dy, dgate), y), g), gate) in dy.iter_mut().zip(dgate.iter_mut()).zip(y).zip(g).zip(gate) {
            *dy = gate * g;
            *dgate = fma::<FMA>(*g, *y, *dgate);
        }
    }
}

dispatch!(fn forward_rows(x: &[f32], gate: &[f32], y: &[f32], out: &mut [f32]) = forward_body);
dispatch!(fn backward_rows(
    gate: &[f32], y: &[f32], g: &[f32], dy: &mut [f32], dgate: &mut [f32]
) = backward_body);

/// Adds a gated branch to a residual stream: x + gate · y.
///
/// `x` and `y` are `[B, N, C]`, `gate` is `[B, C]`; the result is like `x`. Gradients for all three.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn gated_add(x: &Array, gate: &Array, y: &Array) -> Result<Array, Exception> {
    let shape = x.shape();
    let fits = shape.len() == 3 && y.shape() == shape && gate.shape() == [shape[0], shape[2]];
    host::require(fits, || {
        format!(
            "gated_add takes x and y [B, N, C] and gate [B, C], not {shape:?}, {:?} and {:?}",
            y.shape(),
            gate.shape()
        )
    })?;
    if !host::suits(&[x, gate, y]) || x.size() == 0 {
        return gate.expand_dims(1)?.multiply(y)?.add(x);
    }
    HostKernel::new("gated_add", forward).with_vjp(vjp).call_f32(&[x, gate, y], shape)
}

fn forward(inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [x, gate, y] = inputs else { unreachable!("three inputs") };
    let shape = host::extents(x.shape());
    let (n, c) = (shape[1], shape[2]);
    let batches = x.f32().par_chunks(n * c).zip(y.f32().par_chunks(n * c)).zip(gate.f32().par_chunks(c));
    outputs[0].f32().par_chunks_mut(n * c).zip(batches).for_each(|(out, ((x, y), gate))| {
        out.par_chunks_mut(ROWS * c)
            .zip(x.par_chunks(ROWS * c).zip(y.par_chunks(ROWS * c)))
            .for_each(|(out, (x, y))| forward_rows(x, gate, y, out));
    });
}

fn vjp(vjp: &Vjp) -> Result<Vec<Array>, Exception> {
    let (gate, y, g) = (&vjp.primals[1], &vjp.primals[2], &vjp.cotangents[0]);
    let both = HostKernel::new("gated_add gradient", backward)
        .call(&[gate, y, g], &[(y.shape(), Dtype::Float32), (gate.shape(), Dtype::Float32)])?;
    vjp.pick(&[g.clone(), both[1].clone(), both[0].clone()])
}

fn backward(inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [gate, y, g] = inputs else { unreachable!("three inputs") };
    let [dy, dgate] = outputs else { unreachable!("two outputs") };
    let shape = host::extents(y.shape());
    let (n, c) = (shape[1], shape[2]);
    let tasks = n.div_ceil(ROWS);
    let inputs = y.f32().par_chunks(n * c).zip(g.f32().par_chunks(n * c)).zip(gate.f32().par_chunks(c));
    dy.f32().par_chunks_mut(n * c).zip(dgate.f32().par_chunks_mut(c)).zip(inputs).for_each(
        |((dy, dgate), ((y, g), gate))| {
            let mut partial = vec![0.0f32; tasks * c];
            dy.par_chunks_mut(ROWS * c)
                .zip(partial.par_chunks_mut(c))
                .zip(y.par_chunks(ROWS * c).zip(g.par_chunks(ROWS * c)))
                .for_each(|((dy, partial), (y, g))| backward_rows(gate, y, g, dy, partial));
            sum_rows(&partial, dgate);
        },
    );
}

/// Adds the rows of `partial` up into `out`, first to last.
pub(crate) fn sum_rows(partial: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for row in partial.chunks_exact(out.len()) {
        for (out, row) in out.iter_mut().zip(row) {
            *out += row;
        }
    }
}
