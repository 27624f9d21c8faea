//! Multi-head attention on `f32`: softmax(scale · q kᵀ + bias) v.
//!
//! Scores exist for one block of queries at a time, in a core's cache. The forward pass keeps the
//! logarithm of each row's sum, from which the gradient recomputes the probabilities, as in Dao et
//! al., "FlashAttention" (arXiv:2205.14135), §3.1.

mod backward;
mod block;
mod forward;
mod heads;
mod plain;

use mlx_rs::{Array, Dtype, error::Exception};

use crate::{HostKernel, Vjp, host};

/// Extents and options of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    /// Numbers per head.
    width: usize,
    scale: f32,
    causal: bool,
}

/// How scores are masked or shifted.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mask<'a> {
    /// Every query sees every key.
    #[default]
    None,
    /// Query i sees keys 0 to i; needs as many queries as keys.
    Causal,
    /// Added to the scores: `[H, N, M]`, such as T5's relative position bias.
    Bias(&'a Array),
}

/// Multi-head attention.
///
/// `q` is `[B, N, H·D]`, `k` and `v` are `[B, M, H·D]`, the heads side by side in the last axis;
/// the result is like `q`. Gradients for `q`, `k`, `v` and a bias.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    heads: usize,
    scale: f32,
    mask: Mask<'_>,
) -> Result<Array, Exception> {
    let problem = check(q, k, v, heads, scale, mask)?;
    let bias = match mask {
        Mask::Bias(bias) => Some(bias),
        Mask::None | Mask::Causal => None,
    };
    let arrays: Vec<&Array> = [q, k, v].into_iter().chain(bias).collect();
    if !host::suits(&arrays) || q.size() == 0 || k.size() == 0 {
        return plain::attention(&arrays, problem);
    }
    let log_sums = [problem.batch as i32, problem.heads as i32, problem.queries as i32];
    let outputs = HostKernel::new("attention", move |inputs, outputs| {
        forward::run(problem, inputs, outputs);
    })
    .with_vjp(move |request| vjp(problem, request))
    .call(&arrays, &[(q.shape(), Dtype::Float32), (&log_sums, Dtype::Float32)])?;
    Ok(outputs[0].clone())
}

fn check(
    q: &Array,
    k: &Array,
    v: &Array,
    heads: usize,
    scale: f32,
    mask: Mask<'_>,
) -> Result<Problem, Exception> {
    let (from, to) = (host::extents(q.shape()), host::extents(k.shape()));
    let fits = from.len() == 3
        && to.len() == 3
        && v.shape() == k.shape()
        && (from[0], from[2]) == (to[0], to[2])
        && heads > 0
        && from[2] % heads == 0;
    host::require(fits, || {
        format!(
            "attention takes q [B, N, H*D], k and v [B, M, H*D], not {:?}, {:?} and {:?} with {heads} heads",
            q.shape(),
            k.shape(),
            v.shape()
        )
    })?;
    let problem = Problem {
        batch: from[0],
        heads,
        queries: from[1],
        keys: to[1],
        width: from[2] / heads,
        scale,
        causal: matches!(mask, Mask::Causal),
    };
    match mask {
        Mask::None => {}
        Mask::Causal => host::require(from[1] == to[1], || {
            format!("causal attention needs as many queries as keys, not {} and {}", from[1], to[1])
        })?,
        Mask::Bias(bias) => host::require(host::extents(bias.shape()) == [heads, from[1], to[1]], || {
            format!(
                "an attention bias is [H, N, M] = [{heads}, {}, {}], not {:?}",
                from[1],
                to[1],
                bias.shape()
            )
        })?,
    }
    Ok(problem)
}

fn vjp(problem: Problem, request: &Vjp) -> Result<Vec<Array>, Exception> {
    if request.wants(3) {
        return plain::gradients(problem, request);
    }
    let p = &request.primals;
    let out = &request.outputs;
    let mut inputs = vec![&p[0], &p[1], &p[2], &request.cotangents[0], &out[0], &out[1]];
    inputs.extend(p.get(3));
    let kernel = HostKernel::new("attention gradient", move |inputs, outputs| {
        backward::run(problem, inputs, outputs);
    });
    let all = kernel.call(&inputs, &[0, 1, 2].map(|i| (p[i].shape(), Dtype::Float32)))?;
    request.pick(&all)
}
