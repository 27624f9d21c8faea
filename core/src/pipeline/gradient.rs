//! Derivatives of functions that fail with our error type, and what they are probed with.

use std::cell::RefCell;

use mlx_rs::{Array, Dtype, random, transforms};

use crate::{Error, Result};

/// The value of `f`, a scalar, and its derivatives with respect to each of `arrays`; lazy.
pub(super) fn value_and_gradients(
    arrays: &[Array],
    f: impl Fn(&[Array]) -> Result<Array>,
) -> Result<(Array, Vec<Array>)> {
    // The closure must return MLX's error type; ours waits here.
    let failure: RefCell<Option<Error>> = RefCell::new(None);
    let loss = |arrays: &[Array]| {
        f(arrays).map(|value| vec![value]).map_err(|e| {
            let what = e.to_string();
            failure.replace(Some(e));
            mlx_rs::error::Exception::custom(what)
        })
    };
    let argnums: Vec<i32> = (0..arrays.len() as i32).collect();
    let result = transforms::value_and_grad_with_argnums(loss, &argnums[..])(arrays);
    if let Some(e) = failure.take() {
        return Err(e);
    }
    let (values, gradients) = result?;
    Ok((values[0].clone(), gradients))
}

/// Independent random signs, ±1 of f32: with r of them, E[r rᵀ] is the identity.
pub(super) fn random_signs(shape: &[i32], key: &Array) -> Result<Array> {
    let ones = random::bernoulli(None, shape, key)?.as_dtype(Dtype::Float32)?;
    Ok(ones.multiply(Array::from_f32(2.0))?.subtract(Array::from_f32(1.0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_and_failures_come_through() {
        let arrays = [Array::from_slice(&[2.0_f32, 3.0], &[2]), Array::from_f32(5.0)];
        let f = |a: &[Array]| Ok(a[0].square()?.sum(None)?.multiply(&a[1])?);
        let (value, gradients) = value_and_gradients(&arrays, f).unwrap();
        assert_eq!(value.item_exact::<f32>(), 65.0);
        assert_eq!(gradients[0].as_slice::<f32>(), [20.0, 30.0]);
        assert_eq!(gradients[1].item_exact::<f32>(), 13.0);
        let broken = |_: &[Array]| Err(Error::NotFinite { what: "it".into() });
        assert!(matches!(value_and_gradients(&arrays, broken), Err(Error::NotFinite { .. })));
    }
}
