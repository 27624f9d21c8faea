//! Packed layers against what simulates them.

use mlx_rs::{Array, Dtype, ops};

use super::{InputQuantizer, PackedLinear};
use crate::quant::{Clipping, Granularity, Grid, InputGrids, nearest};
use crate::{LayerSpec, LearnedInput, LinearCall, Role, Stream};

/// One layer against its simulation, in each element type, for batches of one timestep and of two.
#[test]
fn it_computes_what_is_simulated() {
    let [outputs, inputs] = [10_usize, 192];
    let number = |i: usize| ((i * 7919 % 1013) as f32 - 500.0) / 700.0;
    let weight: Vec<f32> = (0..outputs * inputs).map(number).collect();
    let weight = Array::from_slice(&weight, &[outputs as i32, inputs as i32]);
    // So few rows that they are multiplied packed, and so many that the weight is unpacked.
    let batches = [5, 40].map(|tokens| {
        let x: Vec<f32> = (0..2 * tokens * inputs).map(|i| number(i + 17)).collect();
        Array::from_slice(&x, &[2, tokens as i32, inputs as i32])
    });
    let bias: Vec<f32> = (0..outputs).map(number).collect();
    let bias = Array::from_slice(&bias, &[outputs as i32]);
    let spec = LayerSpec {
        id: "l".into(),
        block: "b".into(),
        stream: Stream::Image,
        role: Role::Fc2,
        in_features: inputs,
        out_features: outputs,
        post_gelu: true,
    };
    let plan = InputGrids::new(vec![8, 4], &[0.006, 0.09]).unwrap();
    let learned = LearnedInput {
        scale: vec![0.005, 0.08],
        shift: (0..2 * inputs).map(|i| number(i) / 8.0).collect(),
        multiplier: (0..inputs).map(|i| [1.0, 2.0, 1.0][i % 3]).collect(),
        bias: (0..2 * outputs).map(|i| number(i + 3)).collect(),
    };
    let mut quantizer = InputQuantizer::default();
    for bits in 2..=8 {
        for granularity in [Granularity::Channel, Granularity::Group(48)] {
            let grid = Grid::new(bits, granularity, false).unwrap();
            let mut rounded = nearest(&weight, &grid, Clipping::Absmax).unwrap();
            for learned in [None, Some(learned.clone())] {
                rounded.learned = learned;
                let simulated = rounded.quantized(&plan).unwrap();
                for (dtype, bound) in
                    [(Dtype::Float32, 1e-6), (Dtype::Float16, 1e-2), (Dtype::Bfloat16, 6e-2)]
                {
                    let ours = PackedLinear::new(&rounded, &plan, dtype).unwrap();
                    assert_eq!(ours.is_packed(), granularity == Granularity::Channel);
                    for (x, steps) in batches.iter().flat_map(|x| [(x, [0, 0]), (x, [1, 1]), (x, [1, 0])]) {
                        let half = x.as_dtype(dtype).unwrap();
                        let wide = half.as_dtype(Dtype::Float32).unwrap();
                        let call =
                            |input| LinearCall { layer: &spec, input, weight: &weight, bias: Some(&bias) };
                        let found = ours.forward(&call(&half), &steps, &mut quantizer).unwrap();
                        assert_eq!(found.dtype(), dtype);
                        let expected = simulated.forward(&call(&wide), &steps, None).unwrap();
                        let found = found.as_dtype(Dtype::Float32).unwrap();
                        let off = crate::metrics::relative_l2_arrays(&found, &expected).unwrap();
                        assert!(off < bound, "{bits} bits, {granularity:?}, {dtype:?}, {steps:?}: {off:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn other_inputs_are_refused() {
    let weight = Array::from_slice(&[0.5_f32; 64], &[1, 64]);
    let rounded = nearest(&weight, &Grid::channel(4).unwrap(), Clipping::Absmax).unwrap();
    let plan = InputGrids::new(vec![8], &[0.1]).unwrap();
    let layer = PackedLinear::new(&rounded, &plan, Dtype::Float32).unwrap();
    let spec = LayerSpec {
        id: "l".into(),
        block: "b".into(),
        stream: Stream::Image,
        role: Role::Q,
        in_features: 64,
        out_features: 1,
        post_gelu: false,
    };
    let message = |shape: &[i32], steps: &[usize]| {
        let x = ops::zeros::<f32>(shape).unwrap();
        let call = LinearCall { layer: &spec, input: &x, weight: &weight, bias: None };
        layer.forward(&call, steps, &mut InputQuantizer::default()).unwrap_err().to_string()
    };
    let head = "input of layer `l`: expected shape [1, tokens, 64], each row at one of 1 planned timesteps";
    assert_eq!(message(&[1, 64], &[0]), format!("{head}, found [1, 64]"));
    assert_eq!(message(&[1, 2, 32], &[0]), format!("{head}, found [1, 2, 32]"));
    assert_eq!(message(&[1, 2, 64], &[1]), format!("{head}, found [1, 2, 64]"));
}

#[test]
fn four_bits_take_an_eighth_and_a_little() {
    let weight = ops::ones::<f32>(&[256, 1536]).unwrap();
    let rounded = nearest(&weight, &Grid::channel(4).unwrap(), Clipping::Absmax).unwrap();
    let plan = InputGrids::new(vec![8], &[0.1]).unwrap();
    let size = PackedLinear::new(&rounded, &plan, Dtype::Float16).unwrap().size();
    // Four bits a weight, four bytes a group of 128, and five numbers.
    assert_eq!(size, 256 * 1536 / 2 + 256 * 12 * 4 + 5 * 4);
}
