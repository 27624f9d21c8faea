//! Layer norm with a scale and shift per batch element (adaLN).

use mlx_rs::{Array, error::Exception, fast};

use super::{Form, call};
use crate::host;

/// Layer norm without weights, then `· (1 + scale) + shift`.
///
/// `x` is `[B, N, C]`, `scale` and `shift` are `[B, C]`; the result is like `x`. Gradients for all
/// three.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn layer_norm_modulate(x: &Array, scale: &Array, shift: &Array, eps: f32) -> Result<Array, Exception> {
    let shape = x.shape();
    let row = |a: &Array| shape.len() == 3 && a.shape() == [shape[0], shape[2]];
    host::require(row(scale) && row(shift), || {
        format!(
            "layer_norm_modulate takes x [B, N, C], scale and shift [B, C], not {shape:?}, {:?} and {:?}",
            scale.shape(),
            shift.shape()
        )
    })?;
    if !host::suits(&[x, scale, shift]) || x.size() == 0 {
        let normal = fast::layer_norm(x, None, None, eps)?;
        let one = Array::from_f32(1.0).as_dtype(scale.dtype())?;
        return normal.multiply(scale.add(one)?.expand_dims(1)?)?.add(shift.expand_dims(1)?);
    }
    let form = Form {
        name: "layer_norm_modulate",
        gradient: "layer_norm_modulate gradient",
        centred: true,
        offset: 1.0,
        eps,
    };
    call(form, x, scale, shift)
}
