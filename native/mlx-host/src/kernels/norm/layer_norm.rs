//! Layer norm over the last axis.

use mlx_rs::{Array, error::Exception, fast};

use super::{Form, call};
use crate::host;

/// Layer norm over the last axis, with optional weight and bias.
///
/// `x` is `[.., C]`, `weight` and `bias` are `[C]`; the result is like `x`. Gradients for all three.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f32,
) -> Result<Array, Exception> {
    let width = x.shape().last().copied();
    let given = || weight.into_iter().chain(bias);
    host::require(
        width.is_some() && given().all(|a| Some(a.size() as i32) == width && a.ndim() == 1),
        || {
            let shapes: Vec<_> = given().map(Array::shape).collect();
            format!("layer_norm takes x [.., C] and weights [C], not {:?} and {shapes:?}", x.shape())
        },
    )?;
    let arrays: Vec<&Array> = [x].into_iter().chain(given()).collect();
    if !host::suits(&arrays) || x.size() == 0 {
        return fast::layer_norm(x, weight, bias, eps);
    }
    let form = Form {
        name: "layer_norm",
        gradient: "layer_norm gradient",
        centred: true,
        // Without a weight, zeros stand in for it.
        offset: if weight.is_some() { 0.0 } else { 1.0 },
        eps,
    };
    let zeros = || mlx_rs::ops::zeros::<f32>(&[width.unwrap_or(0)]);
    let weight = weight.cloned().map_or_else(zeros, Ok)?;
    let bias = bias.cloned().map_or_else(zeros, Ok)?;
    call(form, x, &weight, &bias)
}
