//! Group norm of MLX operations.

use mlx_rs::{
    Array,
    error::Exception,
    ops::{mean_axes, rsqrt, sigmoid},
    transforms::fallible_vjp,
};

use super::Form;
use crate::Vjp;

/// `arrays` are x, weight and bias.
pub(super) fn group_norm(arrays: &[&Array], form: Form) -> Result<Array, Exception> {
    let [x, weight, bias] = arrays else { unreachable!("three arrays") };
    let shape = x.shape();
    let channels = shape[shape.len() - 1];
    let pixels: i32 = shape[1..shape.len() - 1].iter().product();
    let groups = form.groups as i32;
    let split = x.reshape(&[shape[0], pixels, groups, channels / groups])?;
    let centred = split.subtract(mean_axes(&split, &[1, 3], true)?)?;
    let variance = mean_axes(&centred.square()?, &[1, 3], true)?;
    let eps = Array::from_f32(form.eps).as_dtype(x.dtype())?;
    let normal = centred.multiply(rsqrt(&variance.add(eps)?)?)?.reshape(shape)?;
    let y = normal.multiply(weight)?.add(bias)?;
    if form.silu { sigmoid(&y)?.multiply(&y) } else { Ok(y) }
}

pub(super) fn gradients(form: Form, request: &Vjp) -> Result<Vec<Array>, Exception> {
    let run = |inputs: &[Array]| {
        let inputs: Vec<&Array> = inputs.iter().collect();
        Ok(vec![group_norm(&inputs, form)?])
    };
    let (_, all) = fallible_vjp(run, &request.primals, &request.cotangents)?;
    request.pick(&all)
}
