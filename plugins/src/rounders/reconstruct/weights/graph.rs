//! The step as MLX operations, on any device.

use mlx_rs::error::Exception;
use mlx_rs::ops::{self, sigmoid};
use mlx_rs::{Array, Dtype};

use super::super::adam;
use super::super::soft::{GAMMA, ZETA};
use super::pass::{Frame, Numbers, State};

/// What [`step`] takes, in its order.
pub(super) fn arguments(
    frame: &Frame,
    state: &State,
    gradient: &Array,
    numbers: Numbers,
) -> Result<Vec<Array>, Exception> {
    let number = Array::from_f32;
    let State { v, first, second, .. } = state.clone();
    let Frame { base, scale, zero, low, high } = frame.clone();
    let Numbers { adam, gain, lambda, beta } = numbers;
    let numbers = [low, high, adam.rate, adam.root, gain, lambda, beta].map(number);
    Ok([v, first, second, base, scale, zero, gradient.clone()].into_iter().chain(numbers).collect())
}

/// V, its moments and the soft weight after the step. A pure function of its arguments, as compiling demands.
pub(super) fn step(arguments: &[Array]) -> Result<Vec<Array>, Exception> {
    let [v, first, second, base, scale, zero, gradient, low, high, rate, root, gain, lambda, beta] =
        arguments
    else {
        return Err(Exception::custom("the step of the rounding takes 14 arrays"));
    };
    let number = Array::from_f32;
    let base = base.as_dtype(Dtype::Float32)?;
    let free = base.ge(low)?.logical_and(base.lt(high)?)?;
    let h = |v: &Array| -> Result<[Array; 3], Exception> {
        let sigmoid = sigmoid(v)?;
        let stretched = sigmoid.multiply(number(ZETA - GAMMA))?.add(number(GAMMA))?;
        Ok([ops::clip(&stretched, (0.0, 1.0))?, stretched, sigmoid])
    };
    let [rounding, stretched, up] = h(v)?;
    let moving = stretched.gt(number(0.0))?.logical_and(stretched.lt(number(1.0))?)?.logical_and(free)?;
    let slope = up.multiply(number(1.0).subtract(&up)?)?.multiply(number(ZETA - GAMMA))?;

    // d(1 − |2h − 1|^β)/dh
    let u = rounding.multiply(number(2.0))?.subtract(number(1.0))?;
    let size = ops::maximum(u.abs()?, number(1e-30))?;
    let power = ops::exp(size.log()?.multiply(beta.subtract(number(1.0))?)?)?;
    let regulariser = power.multiply(ops::sign(&u)?)?.multiply(beta)?.multiply(number(-2.0))?;

    let towards = gradient.multiply(scale)?.multiply(gain)?.add(regulariser.multiply(lambda)?)?;
    let gradient = ops::select(&moving, towards.multiply(slope)?, number(0.0))?;
    let [v, first, second] = adam::update([v, first, second], &gradient, rate, root)?;

    let [rounding, ..] = h(&v)?;
    let on_grid = ops::minimum(ops::maximum(base.add(rounding)?, low)?, high)?;
    let soft = on_grid.subtract(zero)?.multiply(scale)?;
    Ok(vec![v, first, second, soft])
}
