use mlx_host::gated_add;

use super::{agree, agree_alone, normal};

#[test]
fn values_and_gradients() {
    for [b, n, c] in [[2, 77, 192], [1, 1, 5], [3, 40, 33]] {
        let inputs = [normal(&[b, n, c], 1), normal(&[b, c], 2), normal(&[b, n, c], 3)];
        let host = |a: &[_]| gated_add(&a[0], &a[1], &a[2]);
        agree(host, |a| a[1].expand_dims(1)?.multiply(&a[2])?.add(&a[0]), &inputs, 1e-5);
        for index in 0..3 {
            agree_alone(host, &inputs, index);
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (x, gate) = (normal(&[2, 3, 4], 1), normal(&[2, 5], 2));
    assert!(gated_add(&x, &gate, &x).unwrap_err().what().contains("[B, C]"));
}
