//! Two-dimensional convolution.
//!
//! MLX's own takes over a second on two cores for eight 64×64 images. On the CPU a band of rows is copied into a
//! buffer with its border of zeros instead. In such a buffer the `k` pixels that row `dy` of the kernel covers lie
//! side by side, so the band's result is a sum of `k` matrix products, whose left factors are the buffer itself, read
//! with a stride of one pixel: no image is spread out into columns.

use mlx_rs::{Array, Dtype, ops};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use rayon::prelude::*;
use taq_core::Result;

use crate::models::sd3::ops::linear;

/// Pixels of a band, about: enough for the products to run at full speed, few enough for a core's cache.
const BAND: usize = 512;

/// Convolution with a bias that keeps the resolution: `x` is `[n, h, w, in]`, `weight` `[out, k, k, in]` with an odd
/// k, `bias` `[out]`. With `double`, every pixel of `x` first becomes four.
pub(super) fn same(x: &Array, weight: &Array, bias: &Array, double: bool) -> Result<Array> {
    let kernel = weight.dim(1);
    if kernel == 1 && !double {
        return linear(x, &weight.reshape(&[weight.dim(0), weight.dim(3)])?, Some(bias));
    }
    let floats = [x, weight, bias].iter().all(|a| a.dtype() == Dtype::Float32);
    if !floats || !mlx_host::on_cpu() {
        let x = if double { &doubled(x)? } else { x };
        return Ok(ops::conv2d(x, weight, None, (kernel / 2, kernel / 2), None, None)?.add(bias)?);
    }
    let scale = if double { 2 } else { 1 };
    let shape = [x.dim(0), x.dim(1) * scale, x.dim(2) * scale, weight.dim(0)];
    let form = Form {
        height: shape[1] as usize,
        width: shape[2] as usize,
        channels: x.dim(3) as usize,
        filters: shape[3] as usize,
        kernel: kernel as usize,
        scale: scale as usize,
    };
    let run = mlx_host::HostKernel::new("vae_conv2d", move |inputs, outputs| {
        form.run(inputs[0].f32(), inputs[1].f32(), inputs[2].f32(), outputs[0].f32());
    });
    Ok(run.call_f32(&[x, weight, bias], &shape)?)
}

/// Convolution with a bias that halves the resolution, zeros below and to the right of the image only; shapes as in
/// [`same`].
pub(super) fn halving(x: &Array, weight: &Array, bias: &Array) -> Result<Array> {
    let border = (0, weight.dim(1) / 2);
    let x = ops::pad(x, ops::PadWidth::Widths(&[(0, 0), border, border, (0, 0)]), None, None)?;
    Ok(ops::conv2d(x, weight, (2, 2), (0, 0), None, None)?.add(bias)?)
}

/// Nearest-neighbour doubling of both sides.
fn doubled(x: &Array) -> Result<Array> {
    let (n, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let pixels = ops::broadcast_to(x.reshape(&[n, h, 1, w, 1, c])?, &[n, h, 2, w, 2, c])?;
    Ok(pixels.reshape(&[n, 2 * h, 2 * w, c])?)
}

/// Extents of a convolution.
#[derive(Clone, Copy)]
struct Form {
    /// Of the result.
    height: usize,
    width: usize,
    channels: usize,
    filters: usize,
    kernel: usize,
    /// Pixels of the result per pixel of the input, along a side.
    scale: usize,
}

impl Form {
    fn run(self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let (row, image) = (self.width * self.filters, self.height * self.width * self.filters);
        let rows = BAND.div_ceil(self.width).min(self.height);
        let source = x.len() / (y.len() / image);
        y.par_chunks_mut(image).zip(x.par_chunks(source)).for_each(|(y, x)| {
            y.par_chunks_mut(rows * row).enumerate().for_each_init(
                || (vec![], vec![]),
                |(band, sum), (i, y)| self.band(x, weight, bias, i * rows, y, band, sum),
            );
        });
    }

    /// The rows of one image from `top` on, as many as `y` holds.
    #[allow(clippy::too_many_arguments)]
    fn band(
        self,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        top: usize,
        y: &mut [f32],
        band: &mut Vec<f32>,
        sum: &mut Vec<f32>,
    ) {
        let Self { width, channels, filters, kernel, .. } = self;
        let rows = y.len() / (width * filters);
        let padded = width + kernel - 1;
        self.fill(x, top, rows + kernel - 1, band);
        // Pixels of the padded band at which a kernel fits; those that reach over a row's end are not used.
        let pixels = rows * padded - (kernel - 1);
        sum.resize(pixels * filters, 0.0);
        for dy in 0..kernel {
            let shape = (pixels, kernel * channels).strides((channels, 1));
            let left = ArrayView2::from_shape(shape, &band[dy * padded * channels..]);
            let shape = (kernel * channels, filters).strides((1, kernel * kernel * channels));
            let right = ArrayView2::from_shape(shape, &weight[dy * kernel * channels..]);
            let out = ArrayViewMut2::from_shape((pixels, filters), sum.as_mut_slice());
            let (Ok(left), Ok(right), Ok(mut out)) = (left, right, out) else {
                unreachable!("the extents fit")
            };
            general_mat_mul(1.0, &left, &right, if dy == 0 { 0.0 } else { 1.0 }, &mut out);
        }
        for (y, sum) in y.chunks_exact_mut(width * filters).zip(sum.chunks(padded * filters)) {
            for (y, sum) in y.chunks_exact_mut(filters).zip(sum.chunks_exact(filters)) {
                for ((y, s), b) in y.iter_mut().zip(sum).zip(bias) {
                    *y = s + b;
                }
            }
        }
    }

    /// The input of `rows` rows around `top` with its border of zeros: `[rows, width + kernel − 1, channels]`.
    fn fill(self, x: &[f32], top: usize, rows: usize, band: &mut Vec<f32>) {
        let Self { height, width, channels, kernel, scale, .. } = self;
        let (border, padded) = (kernel / 2, width + kernel - 1);
        band.resize(rows * padded * channels, 0.0);
        let source = width / scale * channels;
        for (i, line) in band.chunks_exact_mut(padded * channels).enumerate() {
            let (left, rest) = line.split_at_mut(border * channels);
            let (middle, right) = rest.split_at_mut(width * channels);
            left.fill(0.0);
            right.fill(0.0);
            match (top + i).checked_sub(border).filter(|&from| from < height) {
                None => middle.fill(0.0),
                Some(from) => {
                    let from = &x[from / scale * source..][..source];
                    if scale == 1 {
                        middle.copy_from_slice(from);
                    } else {
                        let pixels = from.chunks_exact(channels);
                        for (to, pixel) in middle.chunks_exact_mut(scale * channels).zip(pixels) {
                            to.chunks_exact_mut(channels).for_each(|to| to.copy_from_slice(pixel));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i32]) -> Array {
        mlx_rs::random::normal::<f32>(shape, None, None, None).unwrap()
    }

    #[test]
    fn agrees_with_mlx() {
        // One row, one column, more than one band, a last band that is shorter, other kernels.
        for (n, h, w, i, o, k, double) in [
            (2, 1, 1, 3, 2, 3, false),
            (1, 5, 7, 4, 3, 3, false),
            (2, 70, 33, 3, 5, 3, false),
            (1, 6, 4, 2, 3, 5, false),
            (3, 4, 5, 6, 7, 1, false),
            (2, 9, 40, 3, 4, 3, true),
            (1, 1, 3, 2, 2, 3, true),
        ] {
            let (x, weight, bias) = (random(&[n, h, w, i]), random(&[o, k, k, i]), random(&[o]));
            let found = same(&x, &weight, &bias, double).unwrap();
            let x = if double { doubled(&x).unwrap() } else { x };
            let expected =
                ops::conv2d(&x, &weight, None, (k / 2, k / 2), None, None).unwrap().add(&bias).unwrap();
            assert_eq!(found.shape(), expected.shape());
            let error =
                found.subtract(&expected).unwrap().abs().unwrap().max(None).unwrap().item_exact::<f32>();
            assert!(error < 1e-4, "{n}×{h}×{w}×{i} → {o}, {k}×{k}: {error}");
        }
    }

    #[test]
    fn doubling_repeats_each_pixel() {
        let x = Array::from_slice(&[1.0f32, 2.0], &[1, 1, 2, 1]);
        let y = doubled(&x).unwrap();
        assert_eq!(y.shape(), [1, 2, 4, 1]);
        let expected = Array::from_slice(&[1.0f32, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0], &[1, 2, 4, 1]);
        assert_eq!(y.subtract(expected).unwrap().abs().unwrap().max(None).unwrap().item_exact::<f32>(), 0.0);
    }
}
