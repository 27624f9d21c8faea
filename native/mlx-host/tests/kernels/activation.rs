use mlx_host::{gelu_erf, gelu_tanh, quick_gelu, silu};
use mlx_rs::{Array, Device, Dtype, ops};

use super::{Outcome, agree, difference, normal};

type Function = fn(&Array) -> Outcome;

fn number(value: f32) -> Array {
    Array::from_f32(value)
}

fn plain_gelu_tanh(x: &Array) -> Outcome {
    let cubed = x.multiply(x)?.multiply(x)?.multiply(number(0.044_715))?;
    let u = x.add(cubed)?.multiply(number((2.0 / std::f32::consts::PI).sqrt()))?;
    ops::tanh(&u)?.add(number(1.0))?.multiply(x)?.multiply(number(0.5))
}

fn plain_gelu_erf(x: &Array) -> Outcome {
    let e = ops::erf(&x.divide(number(2.0f32.sqrt()))?)?;
    e.add(number(1.0))?.multiply(x)?.multiply(number(0.5))
}

const CASES: [(Function, Function); 4] = [
    (gelu_tanh, plain_gelu_tanh),
    (gelu_erf, plain_gelu_erf),
    (quick_gelu, |x| ops::sigmoid(x.multiply(number(1.702))?)?.multiply(x)),
    (silu, |x| ops::sigmoid(x)?.multiply(x)),
];

#[test]
fn values_and_gradients() {
    for (host, plain) in CASES {
        let x = normal(&[3, 77, 129], 1).multiply(number(3.0)).unwrap();
        agree(|x| host(&x[0]), |x| plain(&x[0]), &[x], 3e-6);
    }
}

#[test]
fn strided_inputs() {
    for (host, plain) in CASES {
        let x = normal(&[31, 57], 2);
        agree(|x| host(&x[0].t()), |x| plain(&x[0].t()), &[x], 3e-6);
    }
}

#[test]
fn extreme_values() {
    Device::set_default(&Device::cpu());
    let x = Array::from_slice(&[-1e30f32, -100.0, -20.0, 0.0, 20.0, 100.0, 1e10], &[7]);
    for (host, _) in CASES {
        let y = host(&x).unwrap();
        let y = y.as_slice::<f32>();
        assert!(y[..3].iter().all(|y| y.abs() < 1e-6), "{y:?}");
        assert_eq!(&y[3..], &[0.0, 20.0, 100.0, 1e10]);
        let slope = mlx_rs::transforms::grad(|x: &Array| host(x)?.sum(None))(&x).unwrap();
        let slope = slope.as_slice::<f32>();
        assert!(slope[..2].iter().all(|y| y.abs() < 1e-6), "{slope:?}");
        assert_eq!(&slope[3..], &[0.5, 1.0, 1.0, 1.0]);
    }
}

#[test]
fn other_types_take_mlx_operations() {
    for (host, plain) in CASES {
        let x = normal(&[5, 7], 3);
        let half = host(&x.as_dtype(Dtype::Float16).unwrap()).unwrap();
        assert_eq!(half.dtype(), Dtype::Float16);
        let wide = half.as_dtype(Dtype::Float32).unwrap();
        assert!(difference(&wide, &plain(&x).unwrap()) < 2e-3);
    }
}
