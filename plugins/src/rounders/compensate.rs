//! Column by column, with what is still to come making up for the error.
//!
//! Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*
//! (arXiv 2210.17323), algorithm 1; IST-DASLab/gptq `gptq.py`. With H = mean of xxᵀ over the layer's inputs and U the
//! upper Cholesky factor of H⁻¹, the error of column i, divided by U_ii, is taken from the columns j > i in proportion to
//! U_ij. In falling order of H's diagonal (`act_order`) the strongest inputs have the most columns left to help them.

use mlx_rs::{Array, Device, DeviceType, Dtype, linalg, ops, with_device};
use rayon::prelude::*;
use taq_core::quant::{GridParams, to_vec};
use taq_core::{BlockJob, Context, Error, LayerJob, Result, RoundedLayer};

/// Columns between two updates of all that follow.
const BLOCK: usize = 128;
/// Rows in one forward pass.
const CHUNK: usize = 32;

/// How H is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compensation {
    /// What is added to the diagonal of H, as a share of its mean.
    pub(super) damping: f32,
    /// Whether columns go in falling order of H's diagonal.
    pub(super) act_order: bool,
}

impl Default for Compensation {
    /// GPTQ's code has a damping of 0.01; 0.3 was better on the embedded model, at 2 to 4 bits, for what is learned from it
    /// too (docs/rounding.md).
    fn default() -> Self {
        Self { damping: 0.3, act_order: true }
    }
}

impl Compensation {
    /// Rounds a weight, row-major of this shape and finite, to a grid with these step sizes. `moments` is H.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if H is not finite; [`Error::Settings`] if it cannot be inverted.
    pub(super) fn round(
        self,
        layer: &LayerJob,
        weight: &[f32],
        shape: [usize; 2],
        params: GridParams,
        moments: &Array,
    ) -> Result<RoundedLayer> {
        let order = self.order(moments)?;
        let factor = self.factor(layer, moments, &order)?;
        compensate(weight, shape, layer, params, &order, &factor)
    }

    /// The columns in the order of their treatment.
    fn order(self, moments: &Array) -> Result<Vec<usize>> {
        let diagonal = diagonal(moments)?;
        let mut order: Vec<usize> = (0..diagonal.len()).collect();
        if self.act_order {
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        Ok(order)
    }

    /// U, row-major, its rows and columns in the order of treatment.
    fn factor(self, layer: &LayerJob, moments: &Array, order: &[usize]) -> Result<Vec<f32>> {
        let diagonal = diagonal(moments)?;
        let mean = diagonal.iter().sum::<f32>() / diagonal.len() as f32;
        if !mean.is_finite() {
            return Err(Error::NotFinite { what: format!("input of layer `{}`", layer.spec.id) });
        }
        let index: Vec<i32> = order.iter().map(|&i| i as i32).collect();
        let index = Array::from_slice(&index, &[index.len() as i32]);
        // Inputs that are always 0 leave H singular; any weight will do for them.
        let damping = (self.damping * mean).max(1e-30);
        // LAPACK's work: MLX has these decompositions on the CPU only.
        let upper = with_device(Device::new(DeviceType::Cpu, 0), || {
            let ordered = moments.take_axis(&index, 0)?.take_axis(&index, 1)?;
            let identity = ops::eye::<f32>(order.len() as i32, None, None)?;
            let damped = ordered.add(identity.multiply(Array::from_f32(damping))?)?;
            let inverse = linalg::cholesky_inv(linalg::cholesky(&damped, Some(false))?, Some(false))?;
            linalg::cholesky(&inverse, Some(true))
        });
        let upper = to_vec(&upper?)?;
        if !upper.iter().all(|u| u.is_finite()) {
            let reason = "H cannot be inverted; use a larger damping".to_owned();
            return Err(Error::settings(format!("layer `{}`", layer.spec.id), reason));
        }
        Ok(upper)
    }
}

fn diagonal(moments: &Array) -> Result<Vec<f32>> {
    to_vec(&ops::diagonal(moments, None, None, None)?)
}

/// The mean of xxᵀ over all tokens of all rows, `[in_features, in_features]`, for every layer of the job.
pub(super) fn second_moments(job: &BlockJob<'_>, cx: &Context) -> Result<Vec<Array>> {
    let zeros = |l: &LayerJob| Ok(ops::zeros::<f32>(&[l.spec.in_features as i32; 2])?);
    let mut moments = job.layers.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    let mut tokens = vec![0; moments.len()];
    let rows: Vec<usize> = (0..job.reconstruction.rows()).collect();
    for rows in rows.chunks(CHUNK) {
        cx.check()?;
        job.reconstruction.inputs(rows, &mut |layer, input| {
            let x = input.reshape(&[-1, input.dim(-1)])?.as_dtype(Dtype::Float32)?;
            moments[layer] = moments[layer].add(x.t().matmul(&x)?)?;
            tokens[layer] += x.dim(0);
            Ok(())
        })?;
        mlx_rs::transforms::eval(&moments)?;
    }
    let mean = |(sum, &n): (&Array, &i32)| Ok(sum.multiply(Array::from_f32(1.0 / n.max(1) as f32))?);
    moments.iter().zip(&tokens).map(mean).collect()
}

/// Algorithm 1: `weight` is row-major of this shape, `factor` is U.
fn compensate(
    weight: &[f32],
    shape @ [rows, columns]: [usize; 2],
    layer: &LayerJob,
    params: GridParams,
    order: &[usize],
    factor: &[f32],
) -> Result<RoundedLayer> {
    let grid = layer.grid;
    let group_len = grid.layout(shape)?.group_len;
    let mut weight_int = vec![0_i8; weight.len()];
    // Errors over U_ii, row-major [rows, columns], in the order of treatment.
    let mut errors = vec![0.0_f32; weight.len()];
    for start in (0..columns).step_by(BLOCK) {
        let end = (start + BLOCK).min(columns);
        let carried = carried(&errors, factor, [rows, columns], start, end)?;
        let of_row = |row: usize, integers: &mut [i8], errors: &mut [f32]| {
            let mut own: Vec<f32> =
                order[start..end].iter().map(|&column| weight[row * columns + column]).collect();
            own.iter_mut().zip(&carried[row * (end - start)..]).for_each(|(w, c)| *w -= c);
            for i in start..end {
                let w = own[i - start];
                let group = (row * columns + order[i]) / group_len;
                let (scale, zero) = (params.scale[group], params.zero_point[group]);
                let q = grid.integer(w, scale, zero);
                integers[order[i]] = q;
                let off = w - (f32::from(q) - zero) * scale;
                let error = off / factor[i * columns + i];
                errors[i] = error;
                let following = &factor[i * columns + i + 1..i * columns + end];
                own[i - start + 1..].iter_mut().zip(following).for_each(|(w, u)| *w -= error * u);
            }
        };
        let rows = weight_int.par_chunks_mut(columns).zip(errors.par_chunks_mut(columns)).enumerate();
        rows.for_each(|(row, (integers, errors))| of_row(row, integers, errors));
    }
    Ok(RoundedLayer {
        grid,
        shape,
        weight_int,
        scale: params.scale,
        zero_point: params.zero_point,
        learned: None,
    })
}

/// What the columns before `start` take from those from `start` to `end`: errors · U, row-major `[rows, end − start]`.
fn carried(
    errors: &[f32],
    factor: &[f32],
    [rows, columns]: [usize; 2],
    start: usize,
    end: usize,
) -> Result<Vec<f32>> {
    if start == 0 {
        return Ok(vec![0.0; rows * end]);
    }
    let part = |values: &[f32], rows: usize, from: usize, to: usize| {
        let picked: Vec<f32> =
            values.chunks(columns).take(rows).flat_map(|row| row[from..to].iter().copied()).collect();
        Array::from_slice(&picked, &[rows as i32, (to - from) as i32])
    };
    to_vec(&part(errors, rows, 0, start).matmul(part(factor, start, start, end))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounders::reconstruct::testing::{Planted, job};
    use crate::rounders::{Nearest, NearestSettings};
    use taq_core::Rounder;
    use taq_core::quant::{Clipping, Granularity, Grid, to_matrix};

    fn round(how: Compensation, layer: &LayerJob, moments: &Array) -> Result<RoundedLayer> {
        let (weight, shape) = to_matrix("w", &layer.weight).unwrap();
        let params = GridParams::fit(&weight, shape, &layer.grid, Clipping::Mse).unwrap();
        how.round(layer, &weight, shape, params, moments)
    }

    fn moments(planted: &Planted, layers: &[LayerJob]) -> Array {
        second_moments(&job(planted, layers), &Context::quiet(0)).unwrap().swap_remove(0)
    }

    /// The algorithm as the paper states it, in f64, with the inverse of H updated by elimination after every column.
    fn naive(layer: &LayerJob, h: &[f32], params: &GridParams, order: &[usize], damping: f64) -> Vec<i8> {
        let (rows, n) = (layer.spec.out_features, layer.spec.in_features);
        let mean = (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64;
        let mut a: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                let entry = |j: usize| f64::from(h[order[i] * n + order[j]]);
                (0..n).map(|j| entry(j) + if i == j { damping * mean } else { 0.0 }).collect()
            })
            .collect();
        // Gauss and Jordan.
        let mut inverse: Vec<Vec<f64>> =
            (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        for i in 0..n {
            let pivot = a[i][i];
            for j in 0..n {
                a[i][j] /= pivot;
                inverse[i][j] /= pivot;
            }
            for k in (0..n).filter(|k| *k != i) {
                let factor = a[k][i];
                for j in 0..n {
                    a[k][j] -= factor * a[i][j];
                    inverse[k][j] -= factor * inverse[i][j];
                }
            }
        }
        let weight = to_vec(&layer.weight).unwrap();
        let mut w: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        let group_len = layer.grid.layout([rows, n]).unwrap().group_len;
        let mut integers = vec![0; rows * n];
        for i in 0..n {
            for row in 0..rows {
                let at = row * n + order[i];
                let (scale, zero) = (params.scale[at / group_len], params.zero_point[at / group_len]);
                let q = layer.grid.integer(w[at] as f32, scale, zero);
                integers[at] = q;
                let off = (w[at] - (f64::from(q) - f64::from(zero)) * f64::from(scale)) / inverse[i][i];
                for j in i + 1..n {
                    w[row * n + order[j]] -= off * inverse[i][j];
                }
            }
            let pivot = inverse[i].clone();
            for row in &mut inverse[i + 1..] {
                let factor = row[i] / pivot[i];
                row.iter_mut().zip(&pivot).skip(i).for_each(|(a, b)| *a -= factor * b);
            }
        }
        integers
    }

    #[test]
    fn agrees_with_the_algorithm_written_plainly() {
        // More columns than a block, so that errors are carried over.
        let planted = Planted::new(3, 160, 6, 96);
        for grid in [(4, Granularity::Channel, true), (3, Granularity::Group(16), false)] {
            let layers = planted.layers(Grid::new(grid.0, grid.1, grid.2).unwrap());
            let h = moments(&planted, &layers);
            for act_order in [true, false] {
                let how = Compensation { damping: 0.01, act_order };
                let (weight, shape) = to_matrix("w", &layers[0].weight).unwrap();
                let params = GridParams::fit(&weight, shape, &layers[0].grid, Clipping::Mse).unwrap();
                let order = how.order(&h).unwrap();
                assert_eq!(order.is_sorted(), !act_order);
                let ours = round(how, &layers[0], &h).unwrap();
                let expected = naive(&layers[0], &to_vec(&h).unwrap(), &params, &order, 0.01);
                let same = ours.weight_int.iter().zip(&expected).filter(|(a, b)| a == b).count();
                // In f32 a value at the edge between two integers may fall the other way, and change what follows.
                assert!(same * 100 >= expected.len() * 99, "{same} of {} are the same", expected.len());
            }
        }
    }

    #[test]
    fn dead_inputs_and_bad_numbers() {
        let planted = Planted::new(1, 8, 4, 16);
        let layers = planted.layers(Grid::new(4, Granularity::Channel, true).unwrap());
        let how = Compensation { damping: 0.01, act_order: true };
        // All inputs 0: nothing can go wrong, so nearest it is.
        let dead = round(how, &layers[0], &ops::zeros::<f32>(&[8, 8]).unwrap()).unwrap();
        let nearest = Nearest::new(NearestSettings { clipping: Clipping::Mse });
        let nearest = nearest.round(&job(&planted, &layers), &Context::quiet(0)).unwrap();
        assert_eq!(dead, nearest.layers[0]);
        let nan = Array::from_slice(&[f32::NAN; 64], &[8, 8]);
        let message = round(how, &layers[0], &nan).unwrap_err().to_string();
        assert_eq!(message, "input of layer `planted.0` holds NaN or infinite values");
    }
}
