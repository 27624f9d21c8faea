//! Images: pixels in memory, PNG files, and sheets to compare many at a glance.

mod png;
mod resize;
mod sheet;
mod text;

pub(crate) use png::level;
pub use sheet::{SheetLayout, sheet};

use mlx_rs::Array;

use crate::artifacts::host_values;
use crate::{Error, Result};

/// An RGB image, `[height, width, 3]`, f32; 0 is black and 1 is full brightness.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    height: usize,
    width: usize,
    pixels: Vec<f32>,
}

impl Image {
    /// An image of these pixels, row by row.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not height × width × 3 values, or none.
    pub fn new(height: usize, width: usize, pixels: Vec<f32>) -> Result<Self> {
        let length = height.checked_mul(width).and_then(|n| n.checked_mul(3));
        if length != Some(pixels.len()) || pixels.is_empty() {
            return Err(Error::Shape {
                what: "image".into(),
                expected: format!("{height} × {width} × 3 values, at least one pixel"),
                found: vec![i32::try_from(pixels.len()).unwrap_or(i32::MAX)],
            });
        }
        Ok(Self { height, width, pixels })
    }

    /// An image of one colour.
    fn filled(height: usize, width: usize, colour: [f32; 3]) -> Self {
        Self { height, width, pixels: colour.repeat(height * width) }
    }

    /// The images of a batch, `[batch, height, width, 3]`, f32; evaluates it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the array has another shape, [`Error::Unsupported`] if it is not f32.
    pub fn from_array(batch: &Array) -> Result<Vec<Self>> {
        let (height, width) = match batch.shape() {
            &[_, h, w, 3] if h > 0 && w > 0 => (h.unsigned_abs() as usize, w.unsigned_abs() as usize),
            other => {
                return Err(Error::Shape {
                    what: "decoded images".into(),
                    expected: "[batch, height, width, 3]".into(),
                    found: other.to_vec(),
                });
            }
        };
        let values = host_values::<f32>(batch)?;
        values.chunks_exact(height * width * 3).map(|v| Self::new(height, width, v.to_vec())).collect()
    }

    /// The image as an array, `[1, height, width, 3]`, f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has over 2³¹ − 1 values.
    pub fn to_array(&self) -> Result<Array> {
        match (i32::try_from(self.pixels.len()), i32::try_from(self.height), i32::try_from(self.width)) {
            (Ok(_), Ok(h), Ok(w)) => Ok(Array::from_slice(&self.pixels, &[1, h, w, 3])),
            _ => Err(Error::Shape {
                what: "image".into(),
                expected: "at most 2147483647 values".into(),
                found: vec![i32::MAX],
            }),
        }
    }

    /// Rows of pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns of pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[height, width, 3]`, row by row.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// The image with every pixel as a square of `factor` × `factor`; 0 counts as 1.
    #[must_use]
    pub fn enlarged(&self, factor: usize) -> Self {
        let factor = factor.max(1);
        let mut out = Self::filled(self.height * factor, self.width * factor, [0.0; 3]);
        for y in 0..out.height {
            for x in 0..out.width {
                out.set(y, x, self.get(y / factor, x / factor));
            }
        }
        out
    }

    fn get(&self, y: usize, x: usize) -> [f32; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// Colours a pixel; outside the image nothing happens.
    fn set(&mut self, y: usize, x: usize, colour: [f32; 3]) {
        if y < self.height && x < self.width {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// Copies an image to a place; what lies outside is cut off.
    fn paste(&mut self, image: &Self, top: usize, left: usize) {
        for y in 0..image.height {
            for x in 0..image.width {
                self.set(top + y, left + x, image.get(y, x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_becomes_images() {
        let values: Vec<f32> = (0..24).map(|v| v as f32 / 24.0).collect();
        let images = Image::from_array(&Array::from_slice(&values, &[2, 2, 2, 3])).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(images[1].pixels(), &values[12..]);
        assert_eq!(images[1].get(1, 0), [values[18], values[19], values[20]]);
        let back = images[1].to_array().unwrap();
        assert_eq!(back.shape(), [1, 2, 2, 3]);
        assert_eq!(host_values::<f32>(&back).unwrap(), &values[12..]);
    }

    #[test]
    fn other_shapes_are_refused() {
        for shape in [&[2, 2, 3][..], &[1, 2, 3, 2], &[1, 0, 2, 3]] {
            let array = Array::zeros::<f32>(shape).unwrap();
            assert!(matches!(Image::from_array(&array), Err(Error::Shape { found, .. }) if found == shape));
        }
        let ints = Array::zeros::<i32>(&[1, 2, 2, 3]).unwrap();
        assert!(matches!(Image::from_array(&ints), Err(Error::Unsupported { .. })));
        assert!(matches!(Image::new(2, 2, vec![0.0; 11]), Err(Error::Shape { .. })));
        assert!(matches!(Image::new(0, 2, vec![]), Err(Error::Shape { .. })));
    }

    #[test]
    fn enlarging_repeats_pixels() {
        let image = Image::new(1, 2, vec![0.0, 0.1, 0.2, 0.5, 0.6, 0.7]).unwrap();
        let large = image.enlarged(3);
        assert_eq!((large.height(), large.width()), (3, 6));
        for y in 0..3 {
            for x in 0..6 {
                assert_eq!(large.get(y, x), image.get(0, x / 3));
            }
        }
        assert_eq!(image.enlarged(0), image);
    }
}
