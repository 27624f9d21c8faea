//! Fake quantization of activations: onto the grid and back to floating point, with a gradient that passes
//! straight through (Bengio et al., arXiv 1308.3432).

use mlx_host::{HostKernel, Vjp};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Device, DeviceType, Dtype, ops, stop_gradient};
use rayon::prelude::*;

use super::{activation_qmax, round_small};
use crate::{Error, Result};

/// Rounds activations to a symmetric grid per row of the batch: `clamp(round((x − z) / s), −Q − 1, Q) · s + z`
/// with Q = 2^(bits − 1) − 1, ties to even.
///
/// `x` is `[batch, …, channels]`; `scale` (step sizes, finite and greater than 0) and `bits` (2 to 8) have one
/// entry per row of the batch; `shift` is z, `[batch, channels]`, or 0 if absent. The result has the shape and
/// dtype of `x`. NaN stays NaN.
///
/// The gradient with respect to `x` is 1 where the integer is within the range before clamping and 0 where it
/// is clamped; none flows to the shift.
pub fn fake_quantize(x: &Array, scale: &[f32], bits: &[u8], shift: Option<&Array>) -> Result<Array> {
    let qmax = check(x, scale, bits, shift)?;
    let shift = shift.map(|z| z.as_dtype(x.dtype())).transpose()?;
    let on_cpu = matches!(Device::try_default()?.get_type()?, DeviceType::Cpu);
    let quantized = if on_cpu && x.dtype() == Dtype::Float32 {
        let rows = scale.iter().zip(qmax).map(|(&scale, qmax)| Row { scale, qmax }).collect();
        with_kernel(x, rows, shift.as_ref())
    } else {
        with_ops(x, scale, &qmax, shift.as_ref())
    };
    Ok(quantized?)
}

/// Checks the arguments; returns Q of each row.
fn check(x: &Array, scale: &[f32], bits: &[u8], shift: Option<&Array>) -> Result<Vec<f32>> {
    let wrong = |what: &str, expected: String, found: &[i32]| {
        Err(Error::Shape { what: what.to_owned(), expected, found: found.to_vec() })
    };
    let (&[batch, .., channels], Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) = (x.shape(), x.dtype())
    else {
        return wrong("activations to quantize", "[batch, …, channels] of floating point".into(), x.shape());
    };
    if x.size() == 0 {
        return wrong("activations to quantize", "[batch, …, channels], none of them 0".into(), x.shape());
    }
    for (what, found) in [("step sizes of activations", scale.len()), ("bits of activations", bits.len())] {
        if found != batch as usize {
            return wrong(what, format!("[{batch}], one per row of the batch"), &[found as i32]);
        }
    }
    if let Some(z) = shift.filter(|z| z.shape() != [batch, channels]) {
        return wrong("shift of activations", format!("[{batch}, {channels}]"), z.shape());
    }
    if let Some(row) = scale.iter().position(|s| !s.is_finite() || *s <= 0.0) {
        let reason = format!("scale of row {row} is {}, expected a finite number greater than 0", scale[row]);
        return Err(Error::settings("activation grid", reason));
    }
    bits.iter().map(|&b| activation_qmax(b)).collect()
}

/// The grid of one row of the batch.
#[derive(Clone, Copy)]
struct Row {
    scale: f32,
    qmax: f32,
}

/// On the CPU, in f32: one pass over memory, on all threads.
fn with_kernel(x: &Array, rows: Vec<Row>, shift: Option<&Array>) -> Result<Array, Exception> {
    let tokens = tokens(x.shape());
    let backward_rows = rows.clone();
    let kernel = HostKernel::new("fake_quantize", move |inputs, outputs| {
        let (x, z) = (inputs[0].f32(), inputs.get(1).map(|z| z.f32()));
        each_token(outputs[0].f32(), tokens, &rows, |at, out, Row { scale, qmax }, row| {
            let x = &x[at..at + out.len()];
            let on_grid = |x: f32| round_small((x / scale).clamp(-qmax - 1.0, qmax)) * scale;
            match z.map(|z| &z[row * out.len()..][..out.len()]) {
                None => out.iter_mut().zip(x).for_each(|(y, &x)| *y = on_grid(x)),
                Some(z) => out.iter_mut().zip(x).zip(z).for_each(|((y, &x), &z)| *y = on_grid(x - z) + z),
            }
        });
    });
    let kernel = kernel.with_vjp(move |vjp| gradient(vjp, tokens, backward_rows.clone()));
    match shift {
        None => kernel.call_f32(&[x], x.shape()),
        Some(z) => kernel.call_f32(&[x, z], x.shape()),
    }
}

/// The arriving gradient where nothing was clamped.
fn gradient(vjp: &Vjp, tokens: usize, rows: Vec<Row>) -> Result<Vec<Array>, Exception> {
    let (x, cotangent) = (&vjp.primals[0], &vjp.cotangents[0]);
    let mut gradients = Vec::new();
    if vjp.wants(0) {
        let kernel = HostKernel::new("fake_quantize_gradient", move |inputs, outputs| {
            let (x, g, z) = (inputs[0].f32(), inputs[1].f32(), inputs.get(2).map(|z| z.f32()));
            each_token(outputs[0].f32(), tokens, &rows, |at, out, Row { scale, qmax }, row| {
                let (x, g) = (&x[at..at + out.len()], &g[at..at + out.len()]);
                // Half-way points round to even: the upper one (Q is odd) leaves the range, the lower one (−Q − 1
                // is even) stays in it.
                let (low, high) = (-qmax - 1.5, qmax + 0.5);
                let inside = |x: f32| if x / scale >= low && x / scale < high { 1.0 } else { 0.0 };
                match z.map(|z| &z[row * out.len()..][..out.len()]) {
                    None => out.iter_mut().zip(x).zip(g).for_each(|((y, &x), &g)| *y = g * inside(x)),
                    Some(z) => {
                        out.iter_mut()
                            .zip(x)
                            .zip(g.iter().zip(z))
                            .for_each(|((y, &x), (&g, &z))| *y = g * inside(x - z));
                    }
                }
            });
        });
        let mut inputs = vec![x, cotangent];
        inputs.extend(vjp.primals.get(1));
        gradients.push(kernel.call_f32(&inputs, x.shape())?);
    } else {
        gradients.push(ops::zeros_like(x)?);
    }
    if let Some(z) = vjp.primals.get(1) {
        gradients.push(ops::zeros_like(z)?);
    }
    vjp.pick(&gradients)
}

/// Tokens in a row of the batch: the product of the middle extents.
fn tokens(shape: &[i32]) -> usize {
    shape[1..shape.len() - 1].iter().map(|&n| n as usize).product()
}

/// Calls `work(offset, channels of one token, its row's grid, row)` for all tokens, on all threads.
fn each_token(
    out: &mut [f32],
    tokens: usize,
    rows: &[Row],
    work: impl Fn(usize, &mut [f32], Row, usize) + Sync,
) {
    let channels = out.len() / (tokens * rows.len());
    let share = (16_384 / channels).clamp(1, tokens);
    out.par_chunks_mut(tokens * channels).enumerate().for_each(|(row, values)| {
        values.par_chunks_mut(share * channels).enumerate().for_each(|(part, values)| {
            for (i, token) in values.chunks_mut(channels).enumerate() {
                work((row * tokens + part * share + i) * channels, token, rows[row], row);
            }
        });
    });
}

/// On any device, in any floating-point dtype.
fn with_ops(x: &Array, scale: &[f32], qmax: &[f32], shift: Option<&Array>) -> Result<Array, Exception> {
    let mut per_row = vec![1; x.ndim()];
    per_row[0] = x.dim(0);
    let column = |values: Vec<f32>| Array::from_slice(&values, &per_row).as_dtype(x.dtype());
    let (scale, high) = (column(scale.to_vec())?, column(qmax.to_vec())?);
    let low = column(qmax.iter().map(|q| -q - 1.0).collect())?;
    let shift = shift
        .map(|z| {
            per_row[x.ndim() - 1] = x.dim(-1);
            z.reshape(&per_row)
        })
        .transpose()?;

    let centred = shift.as_ref().map_or_else(|| Ok(x.clone()), |z| x.subtract(z))?;
    let unclamped = centred.divide(&scale)?.round(None)?;
    let mut y = ops::clip(&unclamped, (&low, &high))?.multiply(&scale)?;
    if let Some(z) = &shift {
        y = y.add(z)?;
    }
    let inside = unclamped.ge(&low)?.logical_and(unclamped.le(&high)?)?;
    let through = ops::select(stop_gradient(inside)?, x, stop_gradient(x)?)?;
    stop_gradient(y)?.add(through.subtract(stop_gradient(&through)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::transforms::grad;

    const SHAPE: [i32; 3] = [3, 5, 8];
    const SCALE: [f32; 3] = [0.05, 0.5, 0.013];
    const BITS: [u8; 3] = [8, 4, 3];

    fn random(n: usize, width: f32, seed: u32) -> Vec<f32> {
        let mut rng = rand_mt::Mt::new(seed);
        (0..n).map(|_| ((f64::from(rng.next_u32()) / 4_294_967_296.0 - 0.5) as f32) * 2.0 * width).collect()
    }

    /// Values and gradients, plainly.
    fn naive(x: &[f32], shift: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
        x.iter()
            .enumerate()
            .map(|(i, &x)| {
                let (row, channel) = (i / 40, i % 8);
                let z = shift.map_or(0.0, |s| s[row * 8 + channel]);
                let (low, high) = [(-128.0, 127.0), (-8.0, 7.0), (-4.0, 3.0)][row];
                let q = ((x - z) / SCALE[row]).round_ties_even();
                let y = q.clamp(low, high) * SCALE[row];
                (if shift.is_some() { y + z } else { y }, if (low..=high).contains(&q) { 1.0 } else { 0.0 })
            })
            .unzip()
    }

    fn weighted_sum(
        f: impl Fn(&Array) -> Result<Array, Exception>,
    ) -> impl Fn(&Array) -> Result<Array, Exception> {
        // A weight per element, so that a gradient in the wrong place shows.
        let weights = Array::from_iter((1..=120).map(|i| i as f32), &SHAPE);
        move |x| f(x)?.multiply(&weights)?.sum(None)
    }

    #[test]
    fn kernel_and_graph_agree_with_a_naive_loop() {
        let x = random(120, 9.0, 1);
        let z = random(24, 2.0, 2);
        let x_array = Array::from_slice(&x, &SHAPE);
        let z_array = Array::from_slice(&z, &[3, 8]);
        for shift in [None, Some(&z_array)] {
            let (values, slopes) = naive(&x, shift.map(|_| z.as_slice()));
            assert!(slopes.contains(&0.0) && slopes.contains(&1.0));
            let slopes: Vec<f32> = slopes.iter().zip(1..).map(|(s, i)| s * i as f32).collect();
            let rows: Vec<Row> =
                SCALE.iter().zip([127.0, 7.0, 3.0]).map(|(&scale, qmax)| Row { scale, qmax }).collect();
            let kernel = |x: &Array| with_kernel(x, rows.clone(), shift);
            let graph = |x: &Array| with_ops(x, &SCALE, &[127.0, 7.0, 3.0], shift);
            let public = fake_quantize(&x_array, &SCALE, &BITS, shift).unwrap();
            assert_eq!(public.as_slice::<f32>(), values);
            assert_eq!(kernel(&x_array).unwrap().as_slice::<f32>(), values);
            assert_eq!(graph(&x_array).unwrap().as_slice::<f32>(), values);
            assert_eq!(grad(weighted_sum(kernel))(&x_array).unwrap().as_slice::<f32>(), slopes);
            assert_eq!(grad(weighted_sum(graph))(&x_array).unwrap().as_slice::<f32>(), slopes);
        }
    }

    #[test]
    fn half_way_points_and_ends() {
        let x = [-9.0_f32, -8.5, -8.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.0, 7.5, 9.0];
        let y = [-8.0_f32, -8.0, -8.0, -2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 7.0, 7.0, 7.0];
        // -8.5 rounds to -8, which is in the range; 7.5 rounds to 8, which is not.
        let slopes = [0.0_f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0];
        let x = Array::from_slice(&x, &[1, 12]);
        assert_eq!(fake_quantize(&x, &[1.0], &[4], None).unwrap().as_slice::<f32>(), y);
        let sum = |x: &Array| with_kernel(x, vec![Row { scale: 1.0, qmax: 7.0 }], None)?.sum(None);
        assert_eq!(grad(sum)(&x).unwrap().as_slice::<f32>(), slopes);
        let sum = |x: &Array| with_ops(x, &[1.0], &[7.0], None)?.sum(None);
        assert_eq!(grad(sum)(&x).unwrap().as_slice::<f32>(), slopes);
    }

    #[test]
    fn nan_stays_and_half_precision_is_kept() {
        let x = Array::from_slice(&[f32::NAN, 1.0, f32::INFINITY], &[1, 3]);
        let y = fake_quantize(&x, &[0.5], &[4], None).unwrap();
        assert!(y.as_slice::<f32>()[0].is_nan());
        assert_eq!(y.as_slice::<f32>()[1..], [1.0, 3.5]);
        let half = Array::from_slice(&[0.3_f32, 1.0, -9.0], &[1, 3]).as_dtype(Dtype::Float16).unwrap();
        let y = fake_quantize(&half, &[0.5], &[4], None).unwrap();
        assert_eq!(y.dtype(), Dtype::Float16);
        assert_eq!(y.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>(), [0.5, 1.0, -4.0]);
    }

    #[test]
    fn bad_arguments_are_named() {
        let x = Array::from_slice(&[0.0_f32; 12], &[2, 3, 2]);
        let message = |scale: &[f32], bits: &[u8], z: Option<&Array>| {
            fake_quantize(&x, scale, bits, z).unwrap_err().to_string()
        };
        assert_eq!(
            message(&[1.0], &[8, 8], None),
            "step sizes of activations: expected shape [2], one per row of the batch, found [1]"
        );
        assert!(message(&[1.0, 1.0], &[8], None).starts_with("bits of activations"));
        assert!(message(&[1.0, 0.0], &[8, 8], None).contains("scale of row 1 is 0"));
        assert!(message(&[1.0, f32::NAN], &[8, 8], None).contains("scale of row 1 is NaN"));
        assert!(message(&[1.0, 1.0], &[8, 1], None).contains("bits = 1"));
        let z = Array::from_slice(&[0.0_f32; 4], &[1, 4]);
        assert_eq!(
            message(&[1.0, 1.0], &[8, 8], Some(&z)),
            "shift of activations: expected shape [2, 2], found [1, 4]"
        );
    }
}
