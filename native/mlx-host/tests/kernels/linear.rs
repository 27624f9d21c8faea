use mlx_host::linear;
use mlx_rs::Array;

use super::{agree, agree_alone, normal};

#[test]
fn values_and_gradients() {
    for (shape, outputs) in [(&[2, 77, 192][..], 96), (&[5], 3), (&[100, 1], 7)] {
        let width = shape[shape.len() - 1];
        let inputs = [normal(shape, 1), normal(&[outputs, width], 2), normal(&[outputs], 3)];
        let host = |a: &[Array]| linear(&a[0], &a[1], Some(&a[2]));
        agree(host, |a| a[0].matmul(a[1].t())?.add(&a[2]), &inputs, 1e-5);
        for index in 0..3 {
            agree_alone(host, &inputs, index);
        }
        agree(|a| linear(&a[0], &a[1], None), |a| a[0].matmul(a[1].t()), &inputs[..2], 1e-5);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (x, w) = (normal(&[2, 3], 1), normal(&[4, 3], 2));
    assert!(linear(&x, &w.t(), None).is_err());
    assert!(linear(&x, &w, Some(&x)).unwrap_err().what().contains("bias [O]"));
}
