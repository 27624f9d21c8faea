//! Against the formula in plain loops of f64, and against the simulation.

use mlx_rs::{Array, Device};

use super::super::{Grid, RowGrids, fake_quantize};
use super::*;
use crate::metrics::relative_l2_arrays;
use crate::{LayerSpec, LearnedInput, LinearCall, Role, Stream};

/// Repeatable numbers in −1 … 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A layer of 2 timesteps (8 and 4 bits) on a grid.
fn layer(grid: Grid, shape: [usize; 2], learned: bool) -> (RoundedLayer, InputGrids) {
    let [outputs, inputs] = shape;
    let layout = grid.layout(shape).unwrap();
    let (low, width) = (f32::from(grid.qmin()), f32::from(grid.qmax()) - f32::from(grid.qmin()));
    let weight_int =
        numbers(outputs * inputs, 1).into_iter().map(|x| (low + (x + 1.0) / 2.0 * width).round() as i8);
    let zero = if grid.symmetric { 0.0 } else { 3.0 };
    let rounded = RoundedLayer {
        grid,
        shape,
        weight_int: weight_int.collect(),
        scale: numbers(layout.groups, 2).iter().map(|x| 0.01 * (x + 1.5)).collect(),
        zero_point: numbers(layout.groups, 3).iter().map(|x| zero * x).collect(),
        learned: learned.then(|| LearnedInput {
            scale: vec![0.011, 0.17],
            shift: numbers(2 * inputs, 4).iter().map(|x| 0.3 * x).collect(),
            multiplier: (0..inputs).map(|i| [1.0, 2.0, 4.0][i % 3]).collect(),
            bias: numbers(2 * outputs, 5),
        }),
    };
    (rounded, InputGrids::new(vec![8, 4], &[0.01, 0.15]).unwrap())
}

/// Every output by the formula, in f64 from the grids' f32 parameters.
fn by_definition(
    rounded: &RoundedLayer,
    plan: &InputGrids,
    x: &[f32],
    own: &[f32],
    steps: &[usize],
) -> Vec<f64> {
    let [outputs, inputs] = rounded.shape;
    let group = rounded.weight_int.len() / rounded.scale.len();
    let learned = rounded
        .learned
        .clone()
        .unwrap_or(LearnedInput { scale: plan.scale.as_slice::<f32>().to_vec(), ..Default::default() });
    let or = |values: &[f32], at: usize, otherwise: f32| values.get(at).copied().unwrap_or(otherwise);
    let tokens = x.len() / inputs / steps.len();
    let mut out = Vec::new();
    for (row, x) in x.chunks(inputs).enumerate() {
        let step = steps[row / tokens];
        let (s, qmax) = (learned.scale[step], activation_qmax(plan.bits[step]).unwrap());
        for (o, &own) in own.iter().enumerate() {
            let mut y = f64::from(own) + f64::from(or(&learned.bias, step * outputs + o, 0.0));
            for (i, &x) in x.iter().enumerate() {
                let z = or(&learned.shift, step * inputs + i, 0.0);
                let m = or(&learned.multiplier, i, 1.0);
                let q = ((x - z) / (s * m)).clamp(-qmax - 1.0, qmax).round_ties_even();
                let value = f64::from(q) * f64::from(s) + f64::from(z / m);
                let at = o * inputs + i;
                let w = (f64::from(rounded.weight_int[at]) - f64::from(rounded.zero_point[at / group]))
                    * f64::from(rounded.scale[at / group]);
                y += w * value;
            }
            out.push(y);
        }
    }
    out
}

fn grids() -> Vec<(Grid, [usize; 2])> {
    let grid = |bits, granularity, symmetric| Grid::new(bits, granularity, symmetric).unwrap();
    let mut grids: Vec<_> =
        [2, 3, 4, 6, 8].into_iter().map(|b| (grid(b, Granularity::Channel, false), [35, 70])).collect();
    grids.push((grid(4, Granularity::Group(14), false), [35, 70]));
    grids.push((grid(4, Granularity::Group(32), true), [16, 64]));
    grids.push((grid(8, Granularity::Tensor, false), [20, 33]));
    grids
}

#[test]
fn it_is_the_formula() {
    Device::set_default(&Device::cpu());
    let steps = [1, 0, 1];
    for (grid, shape) in grids() {
        for learned in [false, true] {
            let (rounded, plan) = layer(grid, shape, learned);
            let x = numbers(3 * 5 * shape[1], 6);
            let own = numbers(shape[0], 7);
            let linear = QuantizedLinear::new(&rounded, &plan).unwrap();
            let input = Array::from_slice(&x, &[3, 5, shape[1] as i32]);
            let bias = Array::from_slice(&own, &[shape[0] as i32]);
            let y = linear.forward(&input, Some(&bias), &steps).unwrap();
            assert_eq!(y.shape(), [3, 5, shape[0] as i32]);
            let expected = by_definition(&rounded, &plan, &x, &own, &steps);
            for (y, e) in y.as_slice::<f32>().iter().zip(&expected) {
                let off = (f64::from(*y) - e).abs();
                assert!(off < 5e-7 * (1.0 + e.abs()), "{grid:?}, learned {learned}: {y} {e}");
            }
        }
    }
}

#[test]
fn it_is_what_the_simulation_computes() {
    Device::set_default(&Device::cpu());
    for (grid, shape) in grids() {
        for learned in [false, true] {
            let (rounded, plan) = layer(grid, shape, learned);
            let spec = LayerSpec {
                id: "l".into(),
                block: "b".into(),
                stream: Stream::Image,
                role: Role::Fc2,
                in_features: shape[1],
                out_features: shape[0],
                post_gelu: true,
            };
            let x = Array::from_slice(&numbers(2 * 9 * shape[1], 8), &[2, 9, shape[1] as i32]);
            let call = LinearCall { layer: &spec, input: &x, weight: &x, bias: None };
            let simulated = rounded.quantized(&plan).unwrap().forward(&call, &[0, 1], None).unwrap();
            let y = QuantizedLinear::new(&rounded, &plan).unwrap().forward(&x, None, &[0, 1]).unwrap();
            let off = relative_l2_arrays(&y, &simulated).unwrap();
            assert!(off < 1e-6, "{grid:?}, learned {learned}: {off}");
        }
    }
}

#[test]
fn integers_are_those_of_the_simulation() {
    // Halves, ends of the range and beyond, and both neighbours of every half.
    for bits in [2, 4, 8] {
        let qmax = activation_qmax(bits).unwrap();
        let halves = (-600..=600).map(|i| i as f32 / 4.0);
        let x: Vec<f32> =
            halves.flat_map(|h| [h.next_down(), h, h.next_up()]).chain([1e9, -1e9, f32::INFINITY]).collect();
        let scale = Array::from_slice(&[1.0_f32], &[1]);
        let grids = RowGrids { scale: &scale, bits: &[bits], shift: None, multiplier: None };
        let array = Array::from_slice(&x, &[1, x.len() as i32]);
        let simulated = fake_quantize(&array, grids, None).unwrap();
        for (&x, &q) in x.iter().zip(simulated.as_slice::<f32>()) {
            assert_eq!(f32::from(integer(x, qmax)), q, "{x} on {bits} bits");
        }
    }
}

#[test]
fn nan_is_not_hidden() {
    Device::set_default(&Device::cpu());
    let (rounded, plan) = layer(Grid::channel(4).unwrap(), [3, 8], true);
    let mut x = numbers(2 * 2 * 8, 1);
    x[9] = f32::NAN;
    let x = Array::from_slice(&x, &[2, 2, 8]);
    let y = QuantizedLinear::new(&rounded, &plan).unwrap().forward(&x, None, &[0, 1]).unwrap();
    let nan: Vec<bool> = y.as_slice::<f32>().iter().map(|y| y.is_nan()).collect();
    let expected: Vec<bool> = (0..12).map(|i| i / 3 == 1).collect();
    assert_eq!(nan, expected);
}

#[test]
fn wrong_shapes_are_named() {
    Device::set_default(&Device::cpu());
    let (rounded, plan) = layer(Grid::channel(4).unwrap(), [3, 8], false);
    let linear = QuantizedLinear::new(&rounded, &plan).unwrap();
    let x = Array::from_slice(&numbers(16, 1), &[1, 2, 8]);
    let message = |r: Result<Array>| r.unwrap_err().to_string();
    assert_eq!(
        message(linear.forward(&x, None, &[0, 1])),
        "input of a quantized linear layer: expected shape [2, …, 8], not empty, found [1, 2, 8]"
    );
    assert_eq!(
        message(linear.forward(&x, Some(&x), &[0])),
        "bias of a quantized linear layer: expected shape [3], found [1, 2, 8]"
    );
    assert_eq!(message(linear.forward(&x, None, &[2])), "quantized linear layer: timestep 2 of 2");
}

#[test]
fn it_is_as_small_as_its_integers() {
    let (rounded, plan) = layer(Grid::channel(4).unwrap(), [64, 128], false);
    let linear = QuantizedLinear::new(&rounded, &plan).unwrap();
    // 4 bits a weight, step size and zero point for each output, and what each of the two timesteps needs.
    let bare = 64 * 128 / 2 + 64 * 8 + 2 * size_of::<Step>();
    assert_eq!(linear.size(), bare);
    // A multiplier, and a shift and a bias for each timestep; for both together where they are static.
    let (mut rounded, plan) = layer(Grid::channel(4).unwrap(), [64, 128], true);
    let size = |rounded: &RoundedLayer| QuantizedLinear::new(rounded, &plan).unwrap().size();
    let offset = 4 * 128 + 8 * 64;
    assert_eq!(size(&rounded), bare + 4 * 128 + 2 * offset);
    let learned = rounded.learned.as_mut().unwrap();
    learned.shift.copy_within(128.., 0);
    learned.bias.copy_within(64.., 0);
    assert_eq!(size(&rounded), bare + 4 * 128 + offset);
}
