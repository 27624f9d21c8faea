//! On any device, in any floating-point dtype.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops, random, stop_gradient};

use super::{QDrop, RowGrids};

pub(super) fn fake_quantize(
    x: &Array,
    grids: RowGrids<'_>,
    qmax: &[f32],
    drop: Option<QDrop>,
) -> Result<Array, Exception> {
    let mut per_row = vec![1; x.ndim()];
    per_row[0] = x.dim(0);
    let column = |values: Vec<f32>| Array::from_slice(&values, &per_row).as_dtype(x.dtype());
    let (low, high) = (column(qmax.iter().map(|q| -q - 1.0).collect())?, column(qmax.to_vec())?);
    let scale = grids.scale.reshape(&per_row)?.as_dtype(x.dtype())?;
    let multiplier = grids.multiplier.map(stop_gradient).transpose()?;
    let shift = match grids.shift {
        Some(z) => {
            per_row[x.ndim() - 1] = x.dim(-1);
            Some(stop_gradient(z.reshape(&per_row)?)?)
        }
        None => None,
    };
    let over_multiplier = |y: &Array| multiplier.as_ref().map_or_else(|| Ok(y.clone()), |m| y.divide(m));
    let centred = shift.as_ref().map_or_else(|| Ok(x.clone()), |z| x.subtract(z))?;
    let step = multiplier.as_ref().map_or_else(|| Ok(scale.clone()), |m| scale.multiply(m))?;
    let in_steps = centred.divide(&step)?;
    let unclamped = in_steps.round(None)?;
    let integer = stop_gradient(ops::clip(&unclamped, (&low, &high))?)?;
    let value = integer.multiply(&scale)?;
    let value = match &shift {
        Some(z) => value.add(over_multiplier(z)?)?,
        None => value,
    };
    let value = stop_gradient(value)?;
    // The same value with a gradient, less itself: rounding passes it on, clamping does not.
    let inside = stop_gradient(unclamped.ge(&low)?.logical_and(unclamped.le(&high)?)?)?;
    let through = in_steps.subtract(stop_gradient(&in_steps)?)?;
    let through =
        ops::select(&inside, &through, ops::zeros_like(&through)?)?.add(&integer)?.multiply(&scale)?;
    let quantized = value.add(through.subtract(stop_gradient(&through)?)?)?;
    match drop {
        Some(QDrop { probability, seed }) => {
            let key = random::key(u64::from(seed))?;
            let kept = random::bernoulli(&Array::from_f32(probability), x.shape(), &key)?;
            ops::select(kept, over_multiplier(x)?, quantized)
        }
        None => Ok(quantized),
    }
}
