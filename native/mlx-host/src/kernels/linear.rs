//! The linear layer: x wᵀ + b.
//!
//! On the CPU under Linux the bias is laid out on all cores and the product added by OpenBLAS;
//! MLX's `addmm` lays it out on one.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{addmm, sum_axes},
};
#[cfg(target_os = "linux")]
use rayon::prelude::*;

use crate::host;
#[cfg(target_os = "linux")]
use crate::{HostKernel, View, ViewMut};

/// x wᵀ + b over the last axis.
///
/// `x` is `[.., I]`, `weight` is `[O, I]`, `bias` is `[O]`; the result is `[.., O]`. Gradients for
/// all three.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn linear(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array, Exception> {
    let inner = x.shape().last().copied();
    let fits = weight.ndim() == 2
        && inner == Some(weight.shape()[1])
        && bias.is_none_or(|bias| bias.shape() == &weight.shape()[..1]);
    host::require(fits, || {
        format!(
            "linear takes x [.., I], weight [O, I] and bias [O], not {:?}, {:?} and {:?}",
            x.shape(),
            weight.shape(),
            bias.map(Array::shape)
        )
    })?;
    match bias {
        None => x.matmul(weight.t()),
        Some(bias) => with_bias(x, weight, bias),
    }
}

#[cfg(not(target_os = "linux"))]
fn with_bias(x: &Array, weight: &Array, bias: &Array) -> Result<Array, Exception> {
    addmm(bias, x, weight.t(), None, None)
}

#[cfg(target_os = "linux")]
fn with_bias(x: &Array, weight: &Array, bias: &Array) -> Result<Array, Exception> {
    if !host::suits(&[x, weight, bias]) || x.size() == 0 || weight.size() == 0 {
        return addmm(bias, x, weight.t(), None, None);
    }
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.shape()[0];
    }
    HostKernel::new("linear", forward)
        .with_vjp(|vjp| {
            let (x, weight, g) = (&vjp.primals[0], &vjp.primals[1], &vjp.cotangents[0]);
            let flat = |a: &Array| a.reshape(&[-1, a.shape()[a.ndim() - 1]]);
            let gradient = |&index: &usize| match index {
                0 => g.matmul(weight),
                1 => flat(g)?.t().matmul(flat(x)?),
                _ => sum_axes(flat(g)?, &[0], false),
            };
            vjp.wanted.iter().map(gradient).collect()
        })
        .call_f32(&[x, weight, bias], &shape)
}

#[cfg(target_os = "linux")]
fn forward(inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    const ROW_MAJOR: i32 = 101;
    const PLAIN: i32 = 111;
    const TRANSPOSED: i32 = 112;
    let [x, weight, bias] = inputs else { unreachable!("three inputs") };
    let (x, bias) = (x.f32(), bias.f32());
    let [n, k] = *weight.shape() else { unreachable!("a matrix") };
    let weight = weight.f32();
    let out = outputs[0].f32();
    out.par_chunks_mut(bias.len() * 16).for_each(|rows| {
        rows.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
    });
    let m = out.len() / bias.len();
    assert!(x.len() == m * k as usize && weight.len() == (n * k) as usize);
    let m = i32::try_from(m).expect("MLX's extents are 32-bit numbers");
    // SAFETY: x is m × k, weight n × k and out m × n, all dense and row-major.
    #[allow(unsafe_code)]
    unsafe {
        mlx_sys::cblas_sgemm(
            ROW_MAJOR,
            PLAIN,
            TRANSPOSED,
            m,
            n,
            k,
            1.0,
            x.as_ptr(),
            k,
            weight.as_ptr(),
            k,
            1.0,
            out.as_mut_ptr(),
            n,
        );
    }
}
