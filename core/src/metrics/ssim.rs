//! Structural similarity.
//!
//! Wang, Bovik, Sheikh and Simoncelli, “Image quality assessment: from error visibility to structural
//! similarity”, 2004: Gaussian window of 11 × 11 with σ = 1.5, K₁ = 0.01, K₂ = 0.03. The same numbers as
//! scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
//! data_range=1, channel_axis=2)`.

use super::difference::finite;
use crate::{Error, Result};

const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// Mean structural similarity of two images `[height, width, channels]` with pixels in 0..1: 1 for equal images.
/// The mean goes over the windows that lie inside the image, then over the channels.
///
/// # Errors
/// [`Error::Shape`] if the images do not have this size or are smaller than the window of 11 × 11 pixels,
/// [`Error::NotFinite`] if a pixel is NaN or infinite.
pub fn ssim(a: &[f32], b: &[f32], height: usize, width: usize, channels: usize) -> Result<f64> {
    let length = height.checked_mul(width).and_then(|n| n.checked_mul(channels));
    for image in [a, b] {
        if length != Some(image.len()) || height < WINDOW || width < WINDOW || channels == 0 {
            return Err(Error::Shape {
                what: format!("image to compare ({} values)", image.len()),
                expected: format!("[height, width, channels] of at least [{WINDOW}, {WINDOW}, 1]"),
                found: [height, width, channels].map(|n| i32::try_from(n).unwrap_or(i32::MAX)).to_vec(),
            });
        }
    }
    let kernel = gaussian();
    let mut sum = 0.0;
    for channel in 0..channels {
        let plane = |image: &[f32]| -> Vec<f64> {
            image.iter().skip(channel).step_by(channels).map(|&v| f64::from(v)).collect()
        };
        sum += one_channel(&plane(a), &plane(b), height, width, &kernel);
    }
    finite(sum / channels as f64)
}

fn one_channel(a: &[f64], b: &[f64], height: usize, width: usize, kernel: &[f64; WINDOW]) -> f64 {
    let product = |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let blur = |x: &[f64]| filter(x, height, width, kernel);
    let (mean_a, mean_b) = (blur(a), blur(b));
    let (aa, bb, ab) = (blur(&product(a, a)), blur(&product(b, b)), blur(&product(a, b)));
    let mut sum = 0.0;
    for i in 0..mean_a.len() {
        let (ma, mb) = (mean_a[i], mean_b[i]);
        let (var_a, var_b, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
        sum += (2.0 * ma * mb + C1) * (2.0 * cov + C2) / ((ma * ma + mb * mb + C1) * (var_a + var_b + C2));
    }
    sum / mean_a.len() as f64
}

/// Weighted means over the windows inside the image, rows and then columns.
fn filter(x: &[f64], height: usize, width: usize, kernel: &[f64; WINDOW]) -> Vec<f64> {
    let (inner_h, inner_w) = (height - WINDOW + 1, width - WINDOW + 1);
    let mut rows = vec![0.0; inner_h * width];
    for (i, out) in rows.chunks_exact_mut(width).enumerate() {
        for (k, weight) in kernel.iter().enumerate() {
            let source = &x[(i + k) * width..(i + k + 1) * width];
            out.iter_mut().zip(source).for_each(|(o, s)| *o += weight * s);
        }
    }
    let mut means = Vec::with_capacity(inner_h * inner_w);
    for row in rows.chunks_exact(width) {
        means.extend(row.windows(WINDOW).map(|w| w.iter().zip(kernel).map(|(v, k)| v * k).sum::<f64>()));
    }
    means
}

fn gaussian() -> [f64; WINDOW] {
    let middle = (WINDOW / 2) as f64;
    let mut kernel: [f64; WINDOW] =
        std::array::from_fn(|i| (-(i as f64 - middle).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let sum: f64 = kernel.iter().sum();
    kernel.iter_mut().for_each(|v| *v /= sum);
    kernel
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const H: usize = 17;
    const W: usize = 23;

    /// Pixels of a linear congruential generator, exact in f32: s ← 1664525 s + 1013904223 mod 2³², (s >> 8) / 2²⁴.
    fn noise(mut state: u32) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        };
        (0..H * W * 3).map(|_| next()).collect()
    }

    /// An image of 17 × 23 pixels, and the same with a quarter of another mixed in.
    pub(crate) fn pair() -> (Vec<f32>, Vec<f32>) {
        let p = noise(1);
        let q = p.iter().zip(noise(2)).map(|(p, n)| 0.75 * p + 0.25 * n).collect();
        (p, q)
    }

    #[test]
    fn agrees_with_scikit_image() {
        // skimage.metrics.structural_similarity 0.26.0 with the settings of the module's head, f64.
        let (p, q) = pair();
        let near = |found: Result<f64>, expected: f64| {
            let found = found.unwrap();
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        };
        near(ssim(&p, &q, H, W, 3), 0.9206059345942713);
        for (channel, expected) in
            [0.921959124385337, 0.9236865988218254, 0.9161720805756516].into_iter().enumerate()
        {
            let plane = |v: &[f32]| v.iter().skip(channel).step_by(3).copied().collect::<Vec<_>>();
            near(ssim(&plane(&p), &plane(&q), H, W, 1), expected);
        }
        let corner = |v: &[f32]| -> Vec<f32> {
            v.chunks_exact(W * 3).take(11).flat_map(|row| row[..33].to_vec()).collect()
        };
        near(ssim(&corner(&p), &corner(&q), 11, 11, 3), 0.912284805876757);
    }

    #[test]
    fn equal_images_are_alike() {
        let (p, _) = pair();
        assert!((ssim(&p, &p, H, W, 3).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let (p, q) = pair();
        assert!(matches!(ssim(&p, &q[1..], H, W, 3), Err(Error::Shape { .. })));
        assert!(matches!(ssim(&p[..90], &q[..90], 10, 3, 3), Err(Error::Shape { .. })));
        let mut broken = p.clone();
        broken[100] = f32::NAN;
        assert!(matches!(ssim(&broken, &q, H, W, 3), Err(Error::NotFinite { .. })));
    }
}
