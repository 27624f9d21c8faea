//! On the CPU, in f32: one pass over memory, on all threads.

use mlx_host::{HostKernel, View, Vjp};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops};
use rayon::prelude::*;

use super::{Mask, QDrop, RowGrids};
use crate::quant::round_small;

/// Elements that a task takes at a time, about.
const SHARE: usize = 16_384;

/// Partial sums of a gradient, so that additions need not wait for each other.
const LANES: usize = 16;

/// What a kernel knows beside its arrays.
#[derive(Clone)]
struct Rows {
    qmax: Vec<f32>,
    tokens: usize,
    shifted: bool,
    multiplied: bool,
    mask: Option<Mask>,
}

/// One row of the batch: what every channel is divided by and shifted by.
struct Row {
    scale: f32,
    /// s · m.
    step: Vec<f32>,
    shift: Vec<f32>,
    multiplier: Vec<f32>,
    qmax: f32,
}

impl Rows {
    /// Row `row` of a call's inputs: activations, step sizes, shift if any, multiplier if any.
    fn row(&self, inputs: &[View<'_>], row: usize, channels: usize) -> Row {
        let scale = inputs[1].f32()[row];
        let multiplier = match self.multiplied {
            true => inputs[2 + usize::from(self.shifted)].f32().to_vec(),
            false => vec![1.0; channels],
        };
        Row {
            scale,
            step: multiplier.iter().map(|m| scale * m).collect(),
            shift: match self.shifted {
                true => inputs[2].f32()[row * channels..][..channels].to_vec(),
                false => vec![0.0; channels],
            },
            multiplier,
            qmax: self.qmax[row],
        }
    }
}

pub(super) fn fake_quantize(
    x: &Array,
    grids: RowGrids<'_>,
    qmax: Vec<f32>,
    drop: Option<QDrop>,
) -> Result<Array, Exception> {
    let rows = Rows {
        qmax,
        tokens: x.shape()[1..x.ndim() - 1].iter().map(|&n| n as usize).product(),
        shifted: grids.shift.is_some(),
        multiplied: grids.multiplier.is_some(),
        mask: drop.map(Mask::new),
    };
    let inputs: Vec<&Array> =
        [Some(x), Some(grids.scale), grids.shift, grids.multiplier].into_iter().flatten().collect();
    let backward_rows = rows.clone();
    let kernel =
        HostKernel::new("fake_quantize", move |inputs, outputs| forward(&rows, inputs, outputs[0].f32()));
    kernel.with_vjp(move |vjp| gradient(vjp, &backward_rows)).call_f32(&inputs, x.shape())
}

fn forward(rows: &Rows, inputs: &[View<'_>], out: &mut [f32]) {
    let x = inputs[0].f32();
    let channels = x.len() / (rows.tokens * rows.qmax.len());
    let (row_len, share) = (rows.tokens * channels, SHARE.div_ceil(channels) * channels);
    out.par_chunks_mut(row_len).zip(x.par_chunks(row_len)).enumerate().for_each(|(at, (out, x))| {
        let row = rows.row(inputs, at, channels);
        out.par_chunks_mut(share).zip(x.par_chunks(share)).enumerate().for_each(|(part, (out, x))| {
            let mut index = (at * row_len + part * share) as u32;
            for (out, x) in out.chunks_mut(channels).zip(x.chunks(channels)) {
                forward_token(&row, x, out);
                if let Some(mask) = rows.mask {
                    keep(mask, index, &row, x, out);
                }
                index = index.wrapping_add(channels as u32);
            }
        });
    });
}

#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn forward_token(row: &Row, x: &[f32], out: &mut [f32]) {
    let (low, high) = (-row.qmax - 1.0, row.qmax);
    let channels = row.step.iter().zip(&row.shift).zip(&row.multiplier);
    for ((y, &x), ((&step, &z), &m)) in out.iter_mut().zip(x).zip(channels) {
        *y = round_small(((x - z) / step).clamp(low, high)) * row.scale + z / m;
    }
}

#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn keep(mask: Mask, index: u32, row: &Row, x: &[f32], out: &mut [f32]) {
    for (i, ((y, &x), &m)) in (0_u32..).zip(out.iter_mut().zip(x).zip(&row.multiplier)) {
        *y = if mask.keeps(index.wrapping_add(i)) { x / m } else { *y };
    }
}

/// The arriving gradient over the multiplier where nothing was clamped, and what the step sizes get.
fn gradient(vjp: &Vjp, rows: &Rows) -> Result<Vec<Array>, Exception> {
    let (x, scale) = (&vjp.primals[0], &vjp.primals[1]);
    let rows = rows.clone();
    let kernel = HostKernel::new("fake_quantize gradient", move |inputs, outputs| {
        let [dx, dscale] = outputs else { unreachable!("two outputs") };
        backward(&rows, inputs, dx.f32(), dscale.f32());
    });
    let inputs: Vec<&Array> = vjp.primals.iter().chain([&vjp.cotangents[0]]).collect();
    let mut gradients =
        kernel.call(&inputs, &[(x.shape(), Dtype::Float32), (scale.shape(), Dtype::Float32)])?;
    for other in &vjp.primals[2..] {
        gradients.push(ops::zeros_like(other)?);
    }
    vjp.pick(&gradients)
}

fn backward(rows: &Rows, inputs: &[View<'_>], dx: &mut [f32], dscale: &mut [f32]) {
    let (x, g) = (inputs[0].f32(), inputs[inputs.len() - 1].f32());
    let channels = x.len() / (rows.tokens * rows.qmax.len());
    let (row_len, share) = (rows.tokens * channels, SHARE.div_ceil(channels) * channels);
    let each = dx.par_chunks_mut(row_len).zip(dscale).zip(x.par_chunks(row_len).zip(g.par_chunks(row_len)));
    each.enumerate().for_each(|(at, ((dx, dscale), (x, g)))| {
        let row = rows.row(inputs, at, channels);
        let parts = dx.par_chunks_mut(share).zip(x.par_chunks(share).zip(g.par_chunks(share))).enumerate();
        let sums: Vec<f32> = parts
            .map(|(part, (dx, (x, g)))| {
                let mut index = (at * row_len + part * share) as u32;
                let mut lanes = [0.0; LANES];
                for ((dx, x), g) in dx.chunks_mut(channels).zip(x.chunks(channels)).zip(g.chunks(channels)) {
                    match rows.mask {
                        Some(mask) => backward_token::<true>(&row, mask, index, x, g, dx, &mut lanes),
                        None => {
                            backward_token::<false>(
                                &row,
                                Mask { seed: 0, below: 0 },
                                index,
                                x,
                                g,
                                dx,
                                &mut lanes,
                            );
                        }
                    }
                    index = index.wrapping_add(channels as u32);
                }
                lanes.iter().sum::<f32>()
            })
            .collect();
        *dscale = sums.iter().sum();
    });
}

/// One token; `lanes` gets what it adds to the gradient of the row's step size.
#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn backward_token<const MASKED: bool>(
    row: &Row,
    mask: Mask,
    index: u32,
    x: &[f32],
    g: &[f32],
    dx: &mut [f32],
    lanes: &mut [f32; LANES],
) {
    let (low, high) = (-row.qmax - 1.0, row.qmax);
    let one = |i: usize, x: f32, g: f32| {
        let u = (x - row.shift[i]) / row.step[i];
        // Half-way points round to even: the upper one (Q is odd) leaves the range, the lower one (−Q − 1 is even)
        // stays in it.
        let inside = if u >= low - 0.5 && u < high + 0.5 { 1.0 } else { 0.0 };
        let slope = round_small(u.clamp(low, high)) - u * inside;
        let through = g / row.multiplier[i];
        if MASKED && mask.keeps(index.wrapping_add(i as u32)) {
            (through, 0.0)
        } else {
            (through * inside, g * slope)
        }
    };
    let (x, g) = (&x[..dx.len()], &g[..dx.len()]);
    for start in (0..dx.len()).step_by(LANES) {
        // The last part may be shorter; the others have as many elements as there are lanes.
        for (lane, i) in lanes.iter_mut().zip(start..dx.len()) {
            let (to_x, to_scale) = one(i, x[i], g[i]);
            dx[i] = to_x;
            *lane += to_scale;
        }
    }
}
