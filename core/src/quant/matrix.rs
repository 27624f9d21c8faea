//! From an MLX array to numbers in host memory.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::{Error, Result};

/// The values of a weight, row-major, and its shape `[out_features, in_features]`.
///
/// Evaluates the array; any real floating-point dtype is converted to f32. `what` names the tensor in the
/// errors: [`Error::Shape`] unless it has two axes and is not empty, [`Error::NotFinite`] if a value is NaN or
/// infinite.
pub fn to_matrix(what: &str, weight: &Array) -> Result<(Vec<f32>, [usize; 2])> {
    let &[rows, columns] = weight.shape() else {
        return Err(wrong_shape(what, weight));
    };
    if rows == 0 || columns == 0 {
        return Err(wrong_shape(what, weight));
    }
    let values = to_vec(weight)?;
    if !values.iter().all(|v| v.is_finite()) {
        return Err(Error::NotFinite { what: what.to_owned() });
    }
    Ok((values, [rows as usize, columns as usize]))
}

fn wrong_shape(what: &str, weight: &Array) -> Error {
    Error::Shape {
        what: what.to_owned(),
        expected: "[out_features, in_features]".to_owned(),
        found: weight.shape().to_vec(),
    }
}

/// The values of an array that is not empty, row-major, as f32. Evaluates it.
pub fn to_vec(array: &Array) -> Result<Vec<f32>> {
    let array =
        if array.dtype() == Dtype::Float32 { array.clone() } else { array.as_dtype(Dtype::Float32)? };
    array.contiguous()?.to_vec_exact::<f32>().map_err(|e| Error::Mlx(Exception::custom(e.to_string())))
}

/// Whether no value of an array is NaN or infinite. Evaluates it.
pub fn is_finite(array: &Array) -> Result<bool> {
    // 0 times a finite number is 0, and NaN otherwise: unlike that of the values, the sum cannot overflow.
    Ok(to_vec(&array.multiply(Array::from_f32(0.0))?.sum(None)?)?[0] == 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_and_other_dtypes_are_read() {
        let a = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let (values, shape) = to_matrix("a", &a.t()).unwrap();
        assert_eq!((values.as_slice(), shape), ([1.0, 4.0, 2.0, 5.0, 3.0, 6.0].as_slice(), [3, 2]));
        let (values, _) = to_matrix("a", &a.as_dtype(Dtype::Float16).unwrap()).unwrap();
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn one_value_is_enough() {
        assert!(is_finite(&Array::from_slice(&[f32::MAX, f32::MAX, -2.0], &[3])).unwrap());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!is_finite(&Array::from_slice(&[1.0, bad, 2.0], &[3])).unwrap());
        }
    }

    #[test]
    fn wrong_shapes_and_values_are_named() {
        let message = |a: &Array| to_matrix("weight of `l`", a).unwrap_err().to_string();
        let flat = Array::from_slice(&[1.0_f32, 2.0], &[2]);
        assert_eq!(message(&flat), "weight of `l`: expected shape [out_features, in_features], found [2]");
        let empty = Array::from_slice::<f32>(&[], &[0, 4]);
        assert_eq!(
            message(&empty),
            "weight of `l`: expected shape [out_features, in_features], found [0, 4]"
        );
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let a = Array::from_slice(&[1.0, bad], &[1, 2]);
            assert_eq!(message(&a), "weight of `l` holds NaN or infinite values");
        }
    }
}
