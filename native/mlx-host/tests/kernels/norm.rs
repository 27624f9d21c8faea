use mlx_host::{layer_norm, layer_norm_modulate, rms_norm};
use mlx_rs::{Array, ops};

use super::{Outcome, agree, agree_alone, normal};

fn number(value: f32) -> Array {
    Array::from_f32(value)
}

fn normalised(x: &Array, centred: bool) -> Outcome {
    let x = if centred { x.subtract(ops::mean_axes(x, &[-1], true)?)? } else { x.clone() };
    let variance = ops::mean_axes(&x.square()?, &[-1], true)?;
    x.multiply(ops::rsqrt(&variance.add(number(1e-6))?)?)
}

#[test]
fn modulated() {
    for [b, n, c] in [[2, 77, 192], [1, 1, 5], [3, 40, 33]] {
        let x = normal(&[b, n, c], 1).multiply(number(3.0)).unwrap().add(number(0.7)).unwrap();
        let inputs = [x, normal(&[b, c], 2), normal(&[b, c], 3)];
        let host = |a: &[Array]| layer_norm_modulate(&a[0], &a[1], &a[2], 1e-6);
        let plain = |a: &[Array]| {
            let scale = a[1].add(number(1.0))?.expand_dims(1)?;
            normalised(&a[0], true)?.multiply(scale)?.add(a[2].expand_dims(1)?)
        };
        agree(host, plain, &inputs, 1e-5);
        for index in 0..3 {
            agree_alone(host, &inputs, index);
        }
    }
}

#[test]
fn layer() {
    for shape in [&[2, 77, 192][..], &[5], &[3, 2, 4, 33]] {
        let c = shape[shape.len() - 1];
        let inputs = [normal(shape, 1), normal(&[c], 2), normal(&[c], 3)];
        agree(
            |a| layer_norm(&a[0], Some(&a[1]), Some(&a[2]), 1e-6),
            |a| normalised(&a[0], true)?.multiply(&a[1])?.add(&a[2]),
            &inputs,
            1e-5,
        );
        agree(|a| layer_norm(&a[0], None, None, 1e-6), |a| normalised(&a[0], true), &inputs[..1], 1e-5);
    }
}

#[test]
fn rms() {
    for shape in [&[2, 77, 3, 64][..], &[5], &[300, 33]] {
        let c = shape[shape.len() - 1];
        let inputs = [normal(shape, 1), normal(&[c], 2)];
        let host = |a: &[Array]| rms_norm(&a[0], &a[1], 1e-6);
        agree(host, |a| normalised(&a[0], false)?.multiply(&a[1]), &inputs, 1e-5);
        agree_alone(host, &inputs, 0);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (x, w) = (normal(&[2, 3, 4], 1), normal(&[3], 2));
    assert!(layer_norm_modulate(&x, &w, &w, 1e-6).is_err());
    assert!(layer_norm(&x, Some(&w), None, 1e-6).is_err());
    assert!(rms_norm(&x, &w, 1e-6).is_err());
}
