//! Activation functions: one pass, on all cores, with their derivatives.

mod gelu_erf;
mod gelu_tanh;
mod quick_gelu;
mod silu;

use mlx_rs::{Array, error::Exception};
use rayon::prelude::*;

pub use gelu_erf::gelu_erf;
pub use gelu_tanh::gelu_tanh;
pub use quick_gelu::quick_gelu;
pub use silu::silu;

use crate::{HostKernel, host, simd::dispatch};

/// Elements per task.
const GRAIN: usize = 1 << 14;

/// A function of one number and its derivative.
pub(crate) trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    const GRADIENT: &'static str;

    fn value<const FMA: bool>(x: f32) -> f32;
    fn slope<const FMA: bool>(x: f32) -> f32;

    /// The same of MLX operations.
    fn plain(x: &Array) -> Result<Array, Exception>;
}

#[inline(always)]
fn value_body<const FMA: bool, A: Activation>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = A::value::<FMA>(*x);
    }
}

#[inline(always)]
fn gradient_body<const FMA: bool, A: Activation>(x: &[f32], g: &[f32], y: &mut [f32]) {
    for ((y, x), g) in y.iter_mut().zip(x).zip(g) {
        *y = g * A::slope::<FMA>(*x);
    }
}

dispatch!(fn value<A: Activation>(x: &[f32], y: &mut [f32]) = value_body);
dispatch!(fn gradient<A: Activation>(x: &[f32], g: &[f32], y: &mut [f32]) = gradient_body);

/// Applies `A`, on the host where it can.
fn apply<A: Activation>(x: &Array) -> Result<Array, Exception> {
    if !host::suits(&[x]) {
        return A::plain(x);
    }
    let kernel = HostKernel::new(A::NAME, |inputs, outputs| {
        let x = inputs[0].f32();
        let y = outputs[0].f32();
        y.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(y, x)| value::<A>(x, y));
    })
    .with_vjp(|vjp| {
        let kernel = HostKernel::new(A::GRADIENT, |inputs, outputs| {
            let (x, g) = (inputs[0].f32(), inputs[1].f32());
            let y = outputs[0].f32();
            y.par_chunks_mut(GRAIN)
                .zip(x.par_chunks(GRAIN).zip(g.par_chunks(GRAIN)))
                .for_each(|(y, (x, g))| gradient::<A>(x, g, y));
        });
        let (x, g) = (&vjp.primals[0], &vjp.cotangents[0]);
        Ok(vec![kernel.call_f32(&[x, g], x.shape())?])
    });
    kernel.call_f32(&[x], x.shape())
}
