use mlx_host::{Mask, attention};
use mlx_rs::{Array, ops};

use super::{Outcome, agree, agree_alone, normal};

/// By the definition, from q, k, v and a bias.
fn plain(a: &[Array], heads: i32, scale: f32, causal: bool) -> Outcome {
    let split = |x: &Array| {
        let [b, n, c] = x.shape() else { panic!("three axes") };
        x.reshape(&[*b, *n, heads, c / heads])?.transpose_axes(&[0, 2, 1, 3])
    };
    let (q, k, v) = (split(&a[0])?, split(&a[1])?, split(&a[2])?);
    let mut scores = q.matmul(k.transpose_axes(&[0, 1, 3, 2])?)?.multiply(Array::from_f32(scale))?;
    if let Some(bias) = a.get(3) {
        scores = scores.add(bias)?;
    }
    if causal {
        let n = a[0].shape()[1];
        let seen = ops::tri::<f32>(n, None, None)?;
        scores = scores.add(seen.subtract(Array::from_f32(1.0))?.multiply(Array::from_f32(1e9))?)?;
    }
    let out = ops::softmax_axes(&scores, &[-1], true)?.matmul(v)?;
    out.transpose_axes(&[0, 2, 1, 3])?.reshape(a[0].shape())
}

fn inputs([b, n, m, c]: [i32; 4]) -> [Array; 3] {
    [normal(&[b, n, c], 1), normal(&[b, m, c], 2), normal(&[b, m, c], 3)]
}

const SHAPES: [([i32; 4], i32); 4] =
    [([2, 112, 112, 192], 3), ([1, 50, 77, 128], 2), ([2, 1, 3, 10], 2), ([1, 97, 300, 40], 1)];

#[test]
fn values_and_gradients() {
    for (shape, heads) in SHAPES {
        let host = |a: &[Array]| attention(&a[0], &a[1], &a[2], heads as usize, 0.3, Mask::None);
        agree(host, |a| plain(a, heads, 0.3, false), &inputs(shape), 1e-5);
        agree_alone(host, &inputs(shape), 0);
        agree_alone(host, &inputs(shape), 2);
    }
}

#[test]
fn causal() {
    for [b, n, c] in [[2, 77, 128], [1, 49, 20], [1, 1, 2]] {
        agree(
            |a| attention(&a[0], &a[1], &a[2], 2, 0.2, Mask::Causal),
            |a| plain(a, 2, 0.2, true),
            &inputs([b, n, n, c]),
            1e-5,
        );
    }
}

#[test]
fn biased() {
    for (shape, heads) in SHAPES {
        let bias = normal(&[heads, shape[1], shape[2]], 4);
        let host =
            |a: &[Array], bias: &Array| attention(&a[0], &a[1], &a[2], heads as usize, 0.3, Mask::Bias(bias));
        let constant = |a: &[Array]| [a, std::slice::from_ref(&bias)].concat();
        agree(|a| host(a, &bias), |a| plain(&constant(a), heads, 0.3, false), &inputs(shape), 1e-5);
        let all = constant(&inputs(shape));
        agree(|a| host(&a[..3], &a[3]), |a| plain(a, heads, 0.3, false), &all, 1e-5);
    }
}

#[test]
fn masked_by_minus_infinity() {
    let a = inputs([1, 20, 30, 16]);
    let hidden: Vec<f32> = (0..600).map(|i| if i % 30 < 12 { 0.0 } else { f32::NEG_INFINITY }).collect();
    let bias = Array::from_slice(&hidden, &[1, 20, 30]);
    let short = |x: &Array| x.take_axis(Array::from_slice(&(0..12).collect::<Vec<i32>>(), &[12]), 1);
    agree(
        |a| attention(&a[0], &a[1], &a[2], 1, 0.3, Mask::Bias(&bias)),
        |a| attention(&a[0], &short(&a[1])?, &short(&a[2])?, 1, 0.3, Mask::None),
        &a,
        1e-5,
    );
}

#[test]
fn wrong_shapes_are_refused() {
    let [q, k, v] = inputs([1, 4, 5, 6]);
    let run = |heads, mask| attention(&q, &k, &v, heads, 1.0, mask).unwrap_err().what().to_owned();
    assert!(run(4, Mask::None).contains("4 heads"));
    assert!(run(2, Mask::Causal).contains("as many queries as keys"));
    assert!(run(2, Mask::Bias(&q)).contains("[2, 4, 5]"));
}
