//! Images of another size.

use super::Image;

impl Image {
    /// The image at another size, by bilinear interpolation between the centres of pixels, without smoothing when it
    /// shrinks: torch's `interpolate(mode="bilinear", align_corners=False)`, which the usual FID code uses. Sides of 0 count as 1.
    #[must_use]
    pub fn resized(&self, height: usize, width: usize) -> Self {
        let (height, width) = (height.max(1), width.max(1));
        if (height, width) == (self.height, self.width) {
            return self.clone();
        }
        let rows = places(self.height, height);
        let columns = places(self.width, width);
        let mut out = Self::filled(height, width, [0.0; 3]);
        for (y, &(top, bottom, down)) in rows.iter().enumerate() {
            for (x, &(left, right, along)) in columns.iter().enumerate() {
                let between = |row: usize, c: usize| {
                    self.get(row, left)[c] * (1.0 - along) + self.get(row, right)[c] * along
                };
                out.set(y, x, [0, 1, 2].map(|c| between(top, c) * (1.0 - down) + between(bottom, c) * down));
            }
        }
        out
    }
}

/// For each new place, the two old ones around it and the share of the second.
fn places(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let place = |at: usize| {
        let exact = ((at as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let first = (exact as usize).min(from - 1);
        (first, (first + 1).min(from - 1), (exact - first as f64) as f32)
    };
    (0..to).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_scikit_image() {
        // skimage.transform.resize(x, size, order=1, mode="edge", anti_aliasing=False) of tests/golden/distances.py.
        let pixels: Vec<f32> = (0..4 * 3 * 3).map(|i| ((i * 7) % 11) as f32 / 10.0).collect();
        let image = Image::new(4, 3, pixels).unwrap();
        for ((height, width), expected) in [
            ((6, 5), &[0.0f32, 0.6, 0.1, 0.85, 0.35, 0.46, 0.55, 0.11, 0.69, 0.31, 0.67, 0.5, 0.04][..]),
            ((3, 2), &[0.3375, 0.225, 0.525][..]),
        ] {
            let found = image.resized(height, width);
            let every: Vec<f32> = found.pixels().iter().step_by(7).copied().collect();
            assert_eq!(every.len(), expected.len());
            for (a, b) in every.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{every:?}");
            }
        }
        assert_eq!(image.resized(4, 3), image);
    }
}
