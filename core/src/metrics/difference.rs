//! Mean squared error, PSNR, and relative L2 error.

use mlx_rs::Array;

use crate::artifacts::host_values;
use crate::{Error, Result};

/// Mean squared error of two tensors of the same length.
///
/// # Errors
/// [`Error::Shape`] if the lengths differ or are 0, [`Error::NotFinite`] if the result is no number.
pub fn mse(a: &[f32], b: &[f32]) -> Result<f64> {
    same_length(a, b)?;
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    finite(sum / a.len() as f64)
}

/// Peak signal-to-noise ratio in dB, −10 · log₁₀ of the mean squared error, of pixels in 0..1. `None` if the
/// images are equal: the ratio is infinite, which a JSON document cannot say.
///
/// # Errors
/// As [`mse`].
pub fn psnr(a: &[f32], b: &[f32]) -> Result<Option<f64>> {
    let decibels = decibels(mse(a, b)?);
    Ok(decibels.is_finite().then_some(decibels))
}

/// −10 · log₁₀ of a mean squared error of values in 0..1, dB; infinite of 0.
pub fn decibels(mse: f64) -> f64 {
    -10.0 * mse.log10()
}

/// ‖a − reference‖ / ‖reference‖ in the L2 norm. Of a reference that is all 0: 0 if `a` is too, else an error.
///
/// # Errors
/// [`Error::Shape`] if the lengths differ or are 0, [`Error::NotFinite`] if the result is no number.
pub fn relative_l2(a: &[f32], reference: &[f32]) -> Result<f64> {
    same_length(a, reference)?;
    let norm: f64 = reference.iter().map(|&r| f64::from(r).powi(2)).sum();
    let error: f64 = a.iter().zip(reference).map(|(&a, &r)| (f64::from(a) - f64::from(r)).powi(2)).sum();
    if error == 0.0 { Ok(0.0) } else { finite((error / norm).sqrt()) }
}

/// [`relative_l2`] of two f32 arrays; evaluates them.
///
/// # Errors
/// As [`relative_l2`]; also [`Error::Shape`] if the shapes differ.
pub fn relative_l2_arrays(a: &Array, reference: &Array) -> Result<f64> {
    if a.shape() != reference.shape() {
        return Err(Error::Shape {
            what: "tensor to compare".into(),
            expected: format!("{:?}, the reference's", reference.shape()),
            found: a.shape().to_vec(),
        });
    }
    relative_l2(&host_values(a)?, &host_values(reference)?)
}

fn same_length(a: &[f32], b: &[f32]) -> Result<()> {
    if a.len() == b.len() && !a.is_empty() {
        return Ok(());
    }
    let length = |v: &[f32]| i32::try_from(v.len()).unwrap_or(i32::MAX);
    Err(Error::Shape {
        what: "tensor to compare".into(),
        expected: format!("{} elements, as many as the reference and at least 1", b.len()),
        found: vec![length(a)],
    })
}

pub(super) fn finite(value: f64) -> Result<f64> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NotFinite { what: "one of the compared tensors".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::ssim::tests::pair;
    use super::*;

    #[test]
    fn agrees_with_scikit_image() {
        // skimage.metrics 0.26.0 and numpy on the same pixels.
        let (p, q) = pair();
        assert!((mse(&p, &q).unwrap() - 0.010699629404385505).abs() < 1e-15);
        assert!((psnr(&p, &q).unwrap().unwrap() - 19.706312644099).abs() < 1e-11);
        assert!((relative_l2(&p, &q).unwrap() - 0.18430196197515447).abs() < 1e-14);
    }

    #[test]
    fn small_cases_by_hand() {
        assert_eq!(mse(&[0.0, 1.0], &[0.0, 0.5]).unwrap(), 0.125);
        assert_eq!(psnr(&[0.0; 4], &[0.1; 4]).unwrap().map(|d| (d * 1e4).round()), Some(200_000.0));
        assert_eq!(psnr(&[0.25; 4], &[0.25; 4]).unwrap(), None);
        assert_eq!(relative_l2(&[3.0, 0.0], &[3.0, 4.0]).unwrap(), 0.8);
        assert_eq!(relative_l2(&[0.0], &[0.0]).unwrap(), 0.0);
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        assert!(matches!(mse(&[0.0], &[0.0, 1.0]), Err(Error::Shape { .. })));
        assert!(matches!(mse(&[], &[]), Err(Error::Shape { .. })));
        assert!(matches!(psnr(&[f32::NAN], &[0.0]), Err(Error::NotFinite { .. })));
        assert!(matches!(relative_l2(&[1.0], &[0.0]), Err(Error::NotFinite { .. })));
        let (a, b) = (Array::from_slice(&[1.0f32, 2.0], &[2]), Array::from_slice(&[1.0f32, 2.0], &[1, 2]));
        assert!(matches!(relative_l2_arrays(&a, &b), Err(Error::Shape { .. })));
        assert_eq!(relative_l2_arrays(&a, &a).unwrap(), 0.0);
    }
}
