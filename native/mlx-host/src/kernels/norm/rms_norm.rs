//! RMS norm over the last axis.

use mlx_rs::{Array, error::Exception, fast};

use super::{Form, call};
use crate::host;

/// x / √(mean x² + eps) · weight over the last axis.
///
/// `x` is `[.., C]`, `weight` is `[C]`; the result is like `x`. Gradients for both.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array, Exception> {
    let width = x.shape().last().copied();
    host::require(weight.ndim() == 1 && width == Some(weight.size() as i32), || {
        format!("rms_norm takes x [.., C] and weight [C], not {:?} and {:?}", x.shape(), weight.shape())
    })?;
    if !host::suits(&[x, weight]) || x.size() == 0 {
        return fast::rms_norm(x, Some(weight), eps);
    }
    let form = Form { name: "rms_norm", gradient: "rms_norm gradient", centred: false, offset: 0.0, eps };
    call(form, x, weight, &mlx_rs::ops::zeros::<f32>(weight.shape())?)
}
