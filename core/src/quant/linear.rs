//! A quantized linear layer that computes with integers: what [`QuantizedLayer`](super::QuantizedLayer) simulates.
//!
//! With the weight ŵ = s_w · (q_w − z), its columns times the input's multiplier m, and the input
//! x̂ = s_a · q_a + shift / m, both on their grids,
//!
//! ```text
//! y = Σ ŵ · x̂ + b = s_a · s_w · (Σ q_w · q_a − z · Σ q_a) + b',     b' = b + Σ ŵ · shift / m
//! ```
//!
//! so that the shift costs nothing but another bias for each timestep, and only integers are multiplied ([`qgemm`]).

use mlx_host::{HostKernel, View};
use mlx_rs::{Array, Dtype};
use qgemm::{PackedWeight, Rows};
use rayon::prelude::*;
use std::sync::Arc;

use super::{Granularity, InputGrids, ROUND_SHIFT, activation_qmax, to_vec};
use crate::{Error, Result, RoundedLayer};

/// Elements that a task quantizes at a time, about.
const SHARE: usize = 16_384;

/// A linear layer with packed integers of 2 to 8 bits as its weight, for the CPU. The weight is never held as floating
/// point, and an input is quantized, multiplied, dequantized and biased in one step.
#[derive(Debug, Clone)]
pub struct QuantizedLinear(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    weight: PackedWeight,
    /// Of each planned timestep.
    steps: Vec<Step>,
    /// Those that differ: a static shift takes the memory of one timestep.
    offsets: Vec<Offset>,
    /// `[in_features]`; empty: 1.
    multiplier: Vec<f32>,
    /// Whether every token brings its own step size.
    dynamic: bool,
}

/// The input's grid at a timestep.
#[derive(Debug)]
struct Step {
    scale: f32,
    qmax: f32,
    /// Place among the offsets.
    offset: usize,
}

/// What is not a step size in the input's grid at some timesteps.
#[derive(Debug)]
struct Offset {
    /// `[in_features]`; empty: 0.
    shift: Vec<f32>,
    /// What the shift and the rounder add to the layer's own bias, `[out_features]`; empty: 0.
    bias: Vec<f64>,
}

impl QuantizedLinear {
    /// The layer with these integers, on the plan's grids of its input except for what was learned of them; it computes
    /// what [`RoundedLayer::quantized`] simulates.
    ///
    /// # Errors
    /// If the layer is none that [`RoundedLayer::validate`] accepts.
    pub fn new(rounded: &RoundedLayer, plan: &InputGrids) -> Result<Self> {
        let weight = pack_weight(rounded)?;
        let [outputs, inputs] = rounded.shape;
        let input = rounded.input(plan)?;
        let values = |array: &Option<Array>| array.as_ref().map_or(Ok(Vec::new()), to_vec);
        let (scales, shifts, multiplier) =
            (to_vec(&input.scale)?, values(&input.shift)?, values(&input.multiplier)?);
        let learned = rounded.learned.as_ref().map_or(&[][..], |l| &l.bias);
        fn row(values: &[f32], step: usize, len: usize) -> &[f32] {
            if values.is_empty() { values } else { &values[step * len..][..len] }
        }
        let (mut steps, mut offsets) = (Vec::new(), Vec::new());
        let mut last = None;
        for (step, (&scale, &bits)) in scales.iter().zip(&input.bits).enumerate() {
            let rows = (row(&shifts, step, inputs), row(learned, step, outputs));
            if last != Some(rows) {
                let bias = folded(&weight, rows.0, &multiplier, rows.1);
                offsets.push(Offset { shift: rows.0.to_vec(), bias });
                last = Some(rows);
            }
            steps.push(Step { scale, qmax: activation_qmax(bits)?, offset: offsets.len() - 1 });
        }
        Ok(Self(Arc::new(Inner { weight, steps, offsets, multiplier, dynamic: input.dynamic })))
    }

    /// Bytes that the layer occupies: packed integers, step sizes, zero points, and the grids of its input.
    pub fn size(&self) -> usize {
        let inner = &*self.0;
        let offset = |o: &Offset| size_of_val(&*o.shift) + size_of_val(&*o.bias);
        let offsets: usize = inner.offsets.iter().map(offset).sum();
        inner.weight.size() + size_of_val(&*inner.multiplier) + size_of_val(&*inner.steps) + offsets
    }

    /// The layer's output `[batch, tokens, out_features]` from its input `[batch, tokens, in_features]` and its own bias
    /// `[out_features]`; `steps` has the planned timestep of each row of the batch. Lazy; on the CPU only, in f32, and given
    /// in the input's type. A row that holds NaN becomes NaN.
    ///
    /// # Errors
    /// [`Error::Shape`] if something has another shape; a wrong device is an error of the evaluation.
    pub fn forward(&self, input: &Array, bias: Option<&Array>, steps: &[usize]) -> Result<Array> {
        let [outputs, inputs] = self.0.weight.shape().map(|n| n as i32);
        let wrong = |what: &str, expected: String, found: &[i32]| Error::Shape {
            what: format!("{what} of a quantized linear layer"),
            expected,
            found: found.to_vec(),
        };
        let (&[batch, .., width], true) = (input.shape(), input.ndim() >= 2) else {
            return Err(wrong("input", format!("[batch, …, {inputs}]"), input.shape()));
        };
        if width != inputs || batch as usize != steps.len() || input.size() == 0 {
            let expected = format!("[{}, …, {inputs}], not empty", steps.len());
            return Err(wrong("input", expected, input.shape()));
        }
        if let Some(bias) = bias.filter(|b| b.shape() != [outputs]) {
            return Err(wrong("bias", format!("[{outputs}]"), bias.shape()));
        }
        if let Some(step) = steps.iter().find(|s| **s >= self.0.steps.len()) {
            let reason = format!("timestep {step} of {}", self.0.steps.len());
            return Err(Error::settings("quantized linear layer", reason));
        }
        let mut shape = input.shape().to_vec();
        shape[input.ndim() - 1] = outputs;
        let f32s = |array: &Array| array.as_dtype(Dtype::Float32);
        let arrays = [Some(f32s(input)?), bias.map(f32s).transpose()?];
        let arrays: Vec<&Array> = arrays.iter().flatten().collect();
        let (inner, steps) = (Arc::clone(&self.0), steps.to_vec());
        let kernel = HostKernel::new("quantized linear", move |inputs, outputs| {
            inner.compute(&steps, inputs, outputs[0].f32());
        });
        Ok(kernel.call_f32(&arrays, &shape)?.as_dtype(input.dtype())?)
    }
}

/// The layer's integers, step sizes and zero points as the kernels take them.
pub(super) fn pack_weight(rounded: &RoundedLayer) -> Result<PackedWeight> {
    let shape @ [outputs, inputs] = rounded.shape;
    let layout = rounded.grid.layout(shape)?;
    let per_tensor = rounded.grid.granularity == Granularity::Tensor;
    let spread = |values: &[f32]| match (per_tensor, values) {
        (true, &[value]) => vec![value; outputs],
        _ => values.to_vec(),
    };
    let group_len = if per_tensor { inputs } else { layout.group_len };
    let (scale, zero) = (spread(&rounded.scale), spread(&rounded.zero_point));
    PackedWeight::new(rounded.grid.bits, shape, group_len, &rounded.weight_int, &scale, &zero)
        .map_err(|reason| Error::settings("packed weight", reason))
}

/// What is added to the layer's own bias: the product of the weight and the shift, and what was learned.
fn folded(weight: &PackedWeight, shift: &[f32], multiplier: &[f32], learned: &[f32]) -> Vec<f64> {
    let learned = learned.iter().map(|&bias| f64::from(bias));
    if shift.is_empty() {
        return learned.collect();
    }
    // As in the simulation, where the shift over the multiplier is a number of 32 bits.
    let over: Vec<f32> = match multiplier.is_empty() {
        true => shift.to_vec(),
        false => shift.iter().zip(multiplier).map(|(z, m)| z / m).collect(),
    };
    let product = weight.multiply_exact(&over);
    product
        .iter()
        .zip(learned.chain(std::iter::repeat(0.0)))
        .map(|(product, learned)| product + learned)
        .collect()
}

impl Inner {
    /// `inputs`: the input, and the layer's own bias if it has one.
    fn compute(&self, steps: &[usize], inputs: &[View<'_>], out: &mut [f32]) {
        let [outputs, width] = self.weight.shape();
        let x = inputs[0].f32();
        let (count, depth, groups) = (x.len() / width, self.weight.depth(), self.weight.groups());
        let tokens = count / steps.len();
        let mut distinct = steps.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        // Tokens that bring their own step sizes have tables of their own.
        let fixed = if self.dynamic { &[][..] } else { &distinct[..] };
        let tables: Vec<Vec<f32>> = fixed
            .iter()
            .map(|&s| {
                let mut table = Vec::new();
                self.fill_table(self.steps[s].scale, &mut table);
                table
            })
            .collect();
        let index = |row: usize| distinct.binary_search(&steps[row / tokens]).unwrap_or(0);
        let index: Vec<usize> = (0..count).map(index).collect();

        let mut integers = vec![0_i8; count * depth];
        let mut sums = vec![0_i32; count * groups];
        let mut scale = vec![0.0_f32; count];
        let share = SHARE.div_ceil(width);
        let rows = integers.par_chunks_mut(share * depth).zip(sums.par_chunks_mut(share * groups));
        let rows = rows.zip(scale.par_chunks_mut(share)).zip(x.par_chunks(share * width)).enumerate();
        rows.for_each(|(part, (((integers, sums), scale), x))| {
            let rows = integers.chunks_exact_mut(depth).zip(sums.chunks_exact_mut(groups)).zip(scale);
            let mut own = Vec::new();
            for (row, (((integers, sums), scale), x)) in rows.zip(x.chunks_exact(width)).enumerate() {
                let at = index[part * share + row];
                let planned = &self.steps[distinct[at]];
                let (scale_of_row, table) = match tables.get(at) {
                    Some(table) => (planned.scale, table),
                    None => {
                        let scale = self.token_scale(distinct[at], x);
                        self.fill_table(scale, &mut own);
                        (scale, &own)
                    }
                };
                let shift = &self.offset(distinct[at]).shift;
                let grid = RowGrid { scale: scale_of_row, qmax: planned.qmax, step: table, shift };
                let finite = quantize(&self.weight, &grid, x, integers, sums);
                *scale = if finite && grid.scale.is_finite() { grid.scale } else { f32::NAN };
            }
        });

        let own = inputs.get(1).map(|bias| bias.f32());
        let biased = own.is_some() || distinct.iter().any(|&s| !self.offset(s).bias.is_empty());
        let mut bias = vec![0.0; if biased { distinct.len() * outputs } else { 0 }];
        for (bias, &step) in bias.chunks_exact_mut(outputs).zip(&distinct) {
            bias.iter_mut().zip(own.unwrap_or_default()).for_each(|(sum, b)| *sum += f64::from(*b));
            bias.iter_mut().zip(&self.offset(step).bias).for_each(|(sum, b)| *sum += b);
        }
        let rows = Rows { integers: &integers, sums: &sums, scale: &scale, bias: &bias, bias_of: &index };
        self.weight.multiply(rows, out);
    }

    fn offset(&self, step: usize) -> &Offset {
        &self.offsets[self.steps[step].offset]
    }

    /// The step size that a token brings; infinite if the token is not finite.
    fn token_scale(&self, step: usize, x: &[f32]) -> f32 {
        let shift = &self.offset(step).shift;
        let moved = x.iter().enumerate().map(|(i, x)| x - shift.get(i).copied().unwrap_or(0.0));
        let reach = match self.multiplier.is_empty() {
            true => moved.fold(0.0_f32, |most, x| most.max(x.abs())),
            false => moved.zip(&self.multiplier).fold(0.0_f32, |most, (x, m)| most.max((x / m).abs())),
        };
        (reach / self.steps[step].qmax).max(f32::MIN_POSITIVE)
    }

    /// s · m by channel.
    fn fill_table(&self, scale: f32, table: &mut Vec<f32>) {
        table.clear();
        match self.multiplier.is_empty() {
            true => table.resize(self.weight.shape()[1], scale),
            false => table.extend(self.multiplier.iter().map(|m| scale * m)),
        }
    }
}

/// What a row is quantized by.
struct RowGrid<'a> {
    scale: f32,
    qmax: f32,
    /// s · m.
    step: &'a [f32],
    /// Empty: 0.
    shift: &'a [f32],
}

/// The integers of a row and their sums by group; whether there is no NaN.
fn quantize(
    weight: &PackedWeight,
    grid: &RowGrid<'_>,
    x: &[f32],
    integers: &mut [i8],
    sums: &mut [i32],
) -> bool {
    let mut finite = true;
    for (group, (sum, x)) in sums.iter_mut().zip(x.chunks_exact(weight.group_len())).enumerate() {
        let first = group * weight.group_len();
        let (step, out) =
            (&grid.step[first..][..x.len()], &mut integers[weight.position(first)..][..x.len()]);
        finite &= match grid.shift.is_empty() {
            true => quantize_group(grid.qmax, x, step, out, sum),
            false => quantize_shifted(grid.qmax, x, step, &grid.shift[first..], out, sum),
        };
    }
    finite
}

#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl+avx512bw"))]
fn quantize_group(qmax: f32, x: &[f32], step: &[f32], out: &mut [i8], sum: &mut i32) -> bool {
    let mut nan = false;
    for ((q, &x), &step) in out.iter_mut().zip(x).zip(step) {
        nan |= x.is_nan();
        *q = integer(x / step, qmax);
    }
    *sum = out.iter().map(|&q| i32::from(q)).sum();
    !nan
}

#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl+avx512bw"))]
fn quantize_shifted(
    qmax: f32,
    x: &[f32],
    step: &[f32],
    shift: &[f32],
    out: &mut [i8],
    sum: &mut i32,
) -> bool {
    let mut nan = false;
    for ((q, &x), (&step, &z)) in out.iter_mut().zip(x).zip(step.iter().zip(shift)) {
        nan |= x.is_nan();
        *q = integer((x - z) / step, qmax);
    }
    *sum = out.iter().map(|&q| i32::from(q)).sum();
    !nan
}

/// The nearest integer within −qmax − 1 … qmax, as [`fake_quantize`](super::fake_quantize) rounds: the lowest bits of
/// the sum that `round_small` takes apart again.
#[inline(always)]
fn integer(in_steps: f32, qmax: f32) -> i8 {
    (in_steps.clamp(-qmax - 1.0, qmax) + ROUND_SHIFT).to_bits() as i8
}

#[cfg(test)]
mod tests;
