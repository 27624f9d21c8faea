//! Features of many images as one matrix in f64, and the products that the distances need.

use mlx_rs::{Array, Stream, with_stream};

use crate::artifacts::host_values;
use crate::{Error, Result};

/// Features of images, one row each.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    rows: usize,
    width: usize,
    values: Vec<f64>,
}

impl Features {
    /// Features of at least two images, all of one width.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are fewer or of several widths, [`Error::NotFinite`] if one is NaN or infinite.
    pub fn new<'a>(images: impl IntoIterator<Item = &'a [f32]>) -> Result<Self> {
        let (mut rows, mut width, mut values) = (0, 0, Vec::new());
        for image in images {
            if rows == 0 {
                width = image.len();
            }
            if image.len() != width || width == 0 {
                return Err(shape("features of one width, at least 1", image.len()));
            }
            values.extend(image.iter().map(|&v| f64::from(v)));
            rows += 1;
        }
        if rows < 2 {
            return Err(shape("features of at least 2 images", rows));
        }
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite { what: "features of an image".into() });
        }
        Ok(Self { rows, width, values })
    }

    /// How many images.
    pub fn images(&self) -> usize {
        self.rows
    }

    /// Features of each.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(super) fn values(&self) -> &[f64] {
        &self.values
    }

    pub(super) fn same_width(&self, other: &Self) -> Result<()> {
        if self.width == other.width { Ok(()) } else { Err(shape("features of one width", other.width)) }
    }

    /// Some of the images.
    pub(super) fn select(&self, rows: &[usize]) -> Self {
        let row = |&row: &usize| &self.values[row * self.width..(row + 1) * self.width];
        Self { rows: rows.len(), width: self.width, values: rows.iter().flat_map(row).copied().collect() }
    }

    /// The mean over the images, and the images less it.
    pub(super) fn centred(&self) -> (Vec<f64>, Self) {
        let mut mean = vec![0.0; self.width];
        for row in self.values.chunks(self.width) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / self.rows as f64);
        }
        let less = |row: &[f64]| row.iter().zip(&mean).map(|(v, m)| v - m).collect::<Vec<_>>();
        let values = self.values.chunks(self.width).flat_map(less).collect();
        (mean, Self { values, ..*self })
    }

    fn array(&self) -> Result<Array> {
        let dim = |n: usize| i32::try_from(n).map_err(|_| shape("at most 2147483647 images", n));
        Ok(Array::from_slice_f64(&self.values, &[dim(self.rows)?, dim(self.width)?]))
    }

    /// `A Bᵀ`, row-major.
    pub(super) fn products(&self, other: &Self) -> Result<Vec<f64>> {
        on_cpu(|| {
            let product = self.array()?.matmul(other.array()?.transpose()?)?;
            host_values::<f64>(&product)
        })
    }

    /// Singular values of `A Bᵀ`. Tall matrices are reduced to the triangle of their QR decomposition, which has the same.
    pub(super) fn singular_values_of_product(&self, other: &Self) -> Result<Vec<f64>> {
        let reduced = |f: &Self| -> Result<Array> {
            let array = f.array()?;
            Ok(if f.rows > f.width { mlx_rs::linalg::qr(&array)?.1 } else { array })
        };
        on_cpu(|| {
            let product = reduced(self)?.matmul(reduced(other)?.transpose()?)?;
            host_values::<f64>(&mlx_rs::linalg::svd(&product)?.1)
        })
    }
}

/// GPUs have neither f64 nor these decompositions.
fn on_cpu<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    with_stream(&Stream::cpu(), work)
}

fn shape(expected: &str, found: usize) -> Error {
    Error::Shape {
        what: "features of images".into(),
        expected: expected.into(),
        found: vec![i32::try_from(found).unwrap_or(i32::MAX)],
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As in `tests/golden/distances.py`.
    pub(in crate::metrics) fn waves(images: usize, width: usize, phase: f64, lift: f64) -> Features {
        let value = |i: usize, j: usize| {
            let (i, j) = (i as f64, j as f64);
            ((0.37 * (i + 1.0) * (j + 1.0) + phase * (i + 1.0)).sin() + lift * j) as f32
        };
        let rows: Vec<Vec<f32>> = (0..images).map(|i| (0..width).map(|j| value(i, j)).collect()).collect();
        Features::new(rows.iter().map(Vec::as_slice)).unwrap()
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        let refused = |rows: &[&[f32]]| Features::new(rows.iter().copied()).unwrap_err();
        assert!(matches!(refused(&[&[1.0, 2.0]]), Error::Shape { .. }));
        assert!(matches!(refused(&[&[1.0, 2.0], &[1.0]]), Error::Shape { .. }));
        assert!(matches!(refused(&[&[], &[]]), Error::Shape { .. }));
        assert!(matches!(refused(&[&[1.0], &[f32::NAN]]), Error::NotFinite { .. }));
    }
}
