use mlx_host::group_norm_silu;
use mlx_rs::{Array, ops};

use super::{Outcome, agree, normal};

fn plain(a: &[Array], groups: i32, silu: bool) -> Outcome {
    let shape = a[0].shape();
    let c = shape[shape.len() - 1];
    let x = a[0].reshape(&[shape[0], -1, groups, c / groups])?;
    let x = x.subtract(ops::mean_axes(&x, &[1, 3], true)?)?;
    let variance = ops::mean_axes(&x.square()?, &[1, 3], true)?;
    let x = x.divide(variance.add(Array::from_f32(1e-6))?.sqrt()?)?.reshape(shape)?;
    let y = x.multiply(&a[1])?.add(&a[2])?;
    if silu { ops::sigmoid(&y)?.multiply(&y) } else { Ok(y) }
}

#[test]
fn values_and_gradients() {
    for (shape, groups) in [(&[2, 17, 19, 64][..], 32), (&[1, 3, 6], 1), (&[3, 5, 5, 12], 4)] {
        let c = shape[shape.len() - 1];
        // A mean far from zero would show a careless variance.
        let x = normal(shape, 1).add(Array::from_f32(30.0)).unwrap();
        let inputs = [x, normal(&[c], 2), normal(&[c], 3)];
        for silu in [false, true] {
            agree(
                |a| group_norm_silu(&a[0], groups as usize, &a[1], &a[2], 1e-6, silu),
                |a| plain(a, groups, silu),
                &inputs,
                2e-5,
            );
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (x, w) = (normal(&[1, 2, 2, 6], 1), normal(&[6], 2));
    assert!(group_norm_silu(&x, 4, &w, &w, 1e-6, true).unwrap_err().what().contains("4 groups"));
}
