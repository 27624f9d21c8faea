//! The kernel and the graph against naive loops.

use mlx_rs::error::Exception;
use mlx_rs::transforms::{grad, value_and_grad_with_argnums};
use mlx_rs::{Array, Dtype};

use super::*;

const SHAPE: [i32; 3] = [3, 5, 8];
const SCALE: [f32; 3] = [0.05, 0.5, 0.013];
const BITS: [u8; 3] = [8, 4, 3];
const QMAX: [f32; 3] = [127.0, 7.0, 3.0];
const DROP: QDrop = QDrop { probability: 0.5, seed: 7 };

fn random(n: usize, width: f32, seed: u32) -> Vec<f32> {
    let mut rng = rand_mt::Mt::new(seed);
    (0..n).map(|_| ((f64::from(rng.next_u32()) / 4_294_967_296.0 - 0.5) as f32) * 2.0 * width).collect()
}

/// Values, their derivatives, and what each adds to the derivative of its row's step size, plainly.
fn naive(x: &[f32], z: &[f32], m: &[f32], drop: Option<QDrop>) -> Vec<(f32, f32, f32)> {
    let one = |(i, &x): (usize, &f32)| {
        let (row, channel) = (i / 40, i % 8);
        let (low, high) = (-QMAX[row] - 1.0, QMAX[row]);
        let step = SCALE[row] * m[channel];
        let u = (x - z[row * 8 + channel]) / step;
        let q = u.round_ties_even();
        let clamped = q.clamp(low, high);
        if drop.is_some_and(|d| Mask::new(d).keeps(i as u32)) {
            (x / m[channel], 1.0 / m[channel], 0.0)
        } else if q == clamped {
            (clamped * SCALE[row] + z[row * 8 + channel] / m[channel], 1.0 / m[channel], clamped - u)
        } else {
            (clamped * SCALE[row] + z[row * 8 + channel] / m[channel], 0.0, clamped)
        }
    };
    x.iter().enumerate().map(one).collect()
}

fn close(found: &Array, expected: &[f32], what: &str) {
    for (i, (a, b)) in found.as_slice::<f32>().iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{what} {i}: {a}, expected {b}");
    }
}

#[test]
fn kernel_and_graph_agree_with_a_naive_loop() {
    let x = random(120, 9.0, 1);
    let (z, m) = (random(24, 2.0, 2), [1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 0.5, 8.0]);
    let x_array = Array::from_slice(&x, &SHAPE);
    let (z_array, m_array) = (Array::from_slice(&z, &[3, 8]), Array::from_slice(&m, &[8]));
    let scale = Array::from_slice(&SCALE, &[3]);
    // A weight per element, so that a gradient in the wrong place shows.
    let weights = Array::from_iter((1..=120).map(|i| i as f32), &SHAPE);
    for case in 0..8 {
        let (shifted, multiplied, dropped) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
        let drop = dropped.then_some(DROP);
        let shift = shifted.then_some(&z_array);
        let multiplier = multiplied.then_some(&m_array);
        let (zeros, ones) = ([0.0; 24], [1.0; 8]);
        let expected =
            naive(&x, if shifted { &z } else { &zeros }, if multiplied { &m } else { &ones }, drop);
        let values: Vec<f32> = expected.iter().map(|e| e.0).collect();
        let slopes: Vec<f32> = expected.iter().zip(1..).map(|(e, i)| e.1 * i as f32).collect();
        assert!(slopes.contains(&1.0) && (dropped || slopes.contains(&0.0)), "{slopes:?}");
        let to_scale: Vec<f32> = (0..3)
            .map(|row| (row * 40..(row + 1) * 40).map(|i| expected[i].2 * (i + 1) as f32).sum())
            .collect();

        let kernel = |x: &Array, s: &Array| {
            kernel::fake_quantize(
                x,
                RowGrids { scale: s, bits: &BITS, shift, multiplier },
                QMAX.to_vec(),
                drop,
            )
        };
        assert_eq!(kernel(&x_array, &scale).unwrap().as_slice::<f32>(), values);
        let loss = |a: &[Array]| -> Result<Vec<Array>, Exception> {
            Ok(vec![kernel(&a[0], &a[1])?.multiply(&weights)?.sum(None)?])
        };
        let arguments = [x_array.clone(), scale.clone()];
        let (_, grads) = value_and_grad_with_argnums(loss, &[0, 1][..])(&arguments).unwrap();
        close(&grads[0], &slopes, "kernel, x");
        close(&grads[1], &to_scale, "kernel, step size");

        // The graph has another source of random numbers.
        if dropped {
            continue;
        }
        let graph = |x: &Array, scale: &Array| {
            graph::fake_quantize(x, RowGrids { scale, bits: &BITS, shift, multiplier }, &QMAX, None)
        };
        let grids = RowGrids { scale: &scale, bits: &BITS, shift, multiplier };
        assert_eq!(graph(&x_array, &scale).unwrap().as_slice::<f32>(), values);
        assert_eq!(fake_quantize(&x_array, grids, None).unwrap().as_slice::<f32>(), values);
        let loss = |a: &[Array]| -> Result<Vec<Array>, Exception> {
            Ok(vec![graph(&a[0], &a[1])?.multiply(&weights)?.sum(None)?])
        };
        let (_, grads) = value_and_grad_with_argnums(loss, &[0, 1][..])(&arguments).unwrap();
        close(&grads[0], &slopes, "graph, x");
        close(&grads[1], &to_scale, "graph, step size");
    }
}

#[test]
fn the_step_size_gradient_is_the_slope_between_kinks() {
    // Where no rounding changes, y is linear in s with the integer as its slope; LSQ's gradient differs by −u alone.
    let x = Array::from_slice(&[0.31_f32, -0.72, 5.0, -9.0], &[1, 4]);
    let sum = |s: &Array| -> Result<Array, Exception> {
        let grids = RowGrids { scale: s, bits: &[4], shift: None, multiplier: None };
        kernel::fake_quantize(&x, grids, vec![7.0], None)?.sum(None)
    };
    let s = Array::from_slice(&[0.5_f32], &[1]);
    // Integers 1, −1 (within), 7 and −8 (clamped): (1 − 0.62) + (−1 + 1.44) + 7 − 8.
    let found = grad(sum)(&s).unwrap().as_slice::<f32>()[0];
    assert!((found - (0.38 + 0.44 - 1.0)).abs() < 1e-5, "{found}");
}

#[test]
fn half_way_points_and_ends() {
    let x = [-9.0_f32, -8.5, -8.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.0, 7.5, 9.0];
    let y = [-8.0_f32, -8.0, -8.0, -2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 7.0, 7.0, 7.0];
    // -8.5 rounds to -8, which is in the range; 7.5 rounds to 8, which is not.
    let slopes = [0.0_f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0];
    let x = Array::from_slice(&x, &[1, 12]);
    let scale = Array::from_slice(&[1.0_f32], &[1]);
    let grids = RowGrids { scale: &scale, bits: &[4], shift: None, multiplier: None };
    assert_eq!(fake_quantize(&x, grids, None).unwrap().as_slice::<f32>(), y);
    let sum = |x: &Array| kernel::fake_quantize(x, grids, vec![7.0], None)?.sum(None);
    assert_eq!(grad(sum)(&x).unwrap().as_slice::<f32>(), slopes);
    let sum = |x: &Array| graph::fake_quantize(x, grids, &[7.0], None)?.sum(None);
    assert_eq!(grad(sum)(&x).unwrap().as_slice::<f32>(), slopes);
}

#[test]
fn a_dropped_share_stays_as_it_is() {
    let x = Array::from_slice(&random(20_000, 1.0, 3), &[2, 50, 200]);
    let scale = Array::from_slice(&[0.3_f32, 0.3], &[2]);
    let grids = RowGrids { scale: &scale, bits: &[4, 4], shift: None, multiplier: None };
    let all = fake_quantize(&x, grids, None).unwrap();
    let share = |found: &Array| {
        let mut kept = 0;
        let (x, all) = (x.as_slice::<f32>(), all.as_slice::<f32>());
        for ((found, x), quantized) in found.as_slice::<f32>().iter().zip(x).zip(all) {
            assert!(found == x || found == quantized);
            kept += usize::from(found == x);
        }
        kept as f64 / 20_000.0
    };
    for probability in [0.0, 0.2, 0.5, 1.0] {
        let kernel = |seed| fake_quantize(&x, grids, Some(QDrop { probability, seed })).unwrap();
        let graph =
            |seed| graph::fake_quantize(&x, grids, &[7.0; 2], Some(QDrop { probability, seed })).unwrap();
        for found in [share(&kernel(1)), share(&graph(1))] {
            assert!((found - f64::from(probability)).abs() < 0.02, "{found} instead of {probability}");
        }
        assert_eq!(kernel(4).as_slice::<f32>(), kernel(4).as_slice::<f32>());
        if probability == 0.5 {
            // Another seed, another half.
            let same = kernel(1)
                .as_slice::<f32>()
                .iter()
                .zip(kernel(2).as_slice::<f32>())
                .filter(|(a, b)| a == b)
                .count();
            assert!((same as f64 / 20_000.0 - 0.5).abs() < 0.02, "{same}");
        }
    }
}

#[test]
fn nan_stays_and_half_precision_is_kept() {
    let scale = Array::from_slice(&[0.5_f32], &[1]);
    let grids = RowGrids { scale: &scale, bits: &[4], shift: None, multiplier: None };
    let x = Array::from_slice(&[f32::NAN, 1.0, f32::INFINITY], &[1, 3]);
    let y = fake_quantize(&x, grids, None).unwrap();
    assert!(y.as_slice::<f32>()[0].is_nan());
    assert_eq!(y.as_slice::<f32>()[1..], [1.0, 3.5]);
    let half = Array::from_slice(&[0.3_f32, 1.0, -9.0], &[1, 3]).as_dtype(Dtype::Float16).unwrap();
    let y = fake_quantize(&half, grids, None).unwrap();
    assert_eq!(y.dtype(), Dtype::Float16);
    assert_eq!(y.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>(), [0.5, 1.0, -4.0]);
}

#[test]
fn bad_arguments_are_named() {
    let x = Array::from_slice(&[0.0_f32; 12], &[2, 3, 2]);
    let message = |scale: &[f32], bits: &[u8], shift: Option<&Array>, multiplier: Option<&Array>| {
        let scale = Array::from_slice(scale, &[scale.len() as i32]);
        fake_quantize(&x, RowGrids { scale: &scale, bits, shift, multiplier }, None).unwrap_err().to_string()
    };
    assert_eq!(
        message(&[1.0], &[8, 8], None, None),
        "step sizes of activations: expected shape [2], one per row of the batch, found [1]"
    );
    assert!(message(&[1.0, 1.0], &[8], None, None).starts_with("bits of activations"));
    assert!(message(&[1.0, 1.0], &[8, 1], None, None).contains("bits = 1"));
    let z = Array::from_slice(&[0.0_f32; 4], &[1, 4]);
    assert_eq!(
        message(&[1.0, 1.0], &[8, 8], Some(&z), None),
        "shift of activations: expected shape [2, 2], found [1, 4]"
    );
    assert_eq!(
        message(&[1.0, 1.0], &[8, 8], None, Some(&z)),
        "multiplier of activations: expected shape [2], found [1, 4]"
    );
}
