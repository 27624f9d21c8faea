//! Every kernel against the same of MLX operations: values and gradients.

mod activation;
mod attention;
mod gated_add;
mod group_norm;
mod linear;
mod norm;

use mlx_rs::{
    Array, Device,
    error::Exception,
    random,
    transforms::{eval, fallible_vjp},
};

type Outcome = Result<Array, Exception>;

/// Normally distributed numbers, the same in every run.
fn normal(shape: &[i32], seed: u64) -> Array {
    Device::set_default(&Device::cpu());
    let key = random::key(seed).unwrap();
    let x = random::normal::<f32>(shape, None, None, &key).unwrap();
    x.eval().unwrap();
    x
}

fn values(x: &Array) -> Vec<f32> {
    x.flatten(None, None).unwrap().contiguous().unwrap().as_slice::<f32>().to_vec()
}

/// The greatest difference relative to the greatest magnitude.
fn difference(a: &Array, b: &Array) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (values(a), values(b));
    let scale = b.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    assert!(a.iter().chain(&b).all(|x| x.is_finite()));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max)
}

/// Checks that both functions and their gradients agree to `tolerance`.
fn agree(
    host: impl Fn(&[Array]) -> Outcome,
    plain: impl Fn(&[Array]) -> Outcome,
    primals: &[Array],
    tolerance: f32,
) {
    let run = |f: &dyn Fn(&[Array]) -> Outcome| {
        let shape = f(primals).unwrap().shape().to_vec();
        let cotangent = normal(&shape, 99);
        let each = |inputs: &[Array]| Ok(vec![f(inputs)?]);
        let (outputs, gradients) = fallible_vjp(each, primals, &[cotangent]).unwrap();
        eval(outputs.iter().chain(&gradients)).unwrap();
        (outputs, gradients)
    };
    let ((y, dy), (expected, expected_dy)) = (run(&host), run(&plain));
    let off = difference(&y[0], &expected[0]);
    assert!(off < tolerance, "values differ by {off}");
    for (i, (a, b)) in dy.iter().zip(&expected_dy).enumerate() {
        let off = difference(a, b);
        assert!(off < tolerance, "gradient {i} differs by {off}");
    }
}

/// Checks that the gradient of input `index` alone is what it is among all.
fn agree_alone(f: impl Fn(&[Array]) -> Outcome, primals: &[Array], index: usize) {
    let cotangent = normal(f(primals).unwrap().shape(), 99);
    let all = |inputs: &[Array]| Ok(vec![f(inputs)?]);
    let (_, together) = fallible_vjp(all, primals, std::slice::from_ref(&cotangent)).unwrap();
    let one = |inputs: &[Array]| {
        let mut primals = primals.to_vec();
        primals[index] = inputs[0].clone();
        Ok(vec![f(&primals)?])
    };
    let (_, alone) = fallible_vjp(one, &primals[index..=index], &[cotangent]).unwrap();
    assert!(difference(&alone[0], &together[index]) == 0.0);
}
