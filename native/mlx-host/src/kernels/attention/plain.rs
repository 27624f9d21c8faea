//! Attention of MLX operations.

use mlx_rs::{
    Array,
    error::Exception,
    fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention},
    transforms::fallible_vjp,
};

use super::Problem;
use crate::Vjp;

/// `arrays` are q, k, v and, if there is one, the bias.
pub(super) fn attention(arrays: &[&Array], p: Problem) -> Result<Array, Exception> {
    let split = |x: &Array| {
        let shape = [p.batch as i32, x.shape()[1], p.heads as i32, p.width as i32];
        x.reshape(&shape)?.transpose_axes(&[0, 2, 1, 3])
    };
    let mask = match (arrays.get(3), p.causal) {
        (Some(bias), _) => Some(ScaledDotProductAttentionMask::Array(bias)),
        (None, true) => Some(ScaledDotProductAttentionMask::Causal),
        (None, false) => None,
    };
    let (q, k, v) = (split(arrays[0])?, split(arrays[1])?, split(arrays[2])?);
    let out = scaled_dot_product_attention(q, k, v, p.scale, mask, None)?;
    out.transpose_axes(&[0, 2, 1, 3])?.reshape(arrays[0].shape())
}

/// The gradients with respect to all inputs, the bias included.
pub(super) fn gradients(p: Problem, request: &Vjp) -> Result<Vec<Array>, Exception> {
    let run = |inputs: &[Array]| {
        let inputs: Vec<&Array> = inputs.iter().collect();
        Ok(vec![attention(&inputs, p)?])
    };
    let (_, all) = fallible_vjp(run, &request.primals, &request.cotangents[..1])?;
    request.pick(&all)
}
