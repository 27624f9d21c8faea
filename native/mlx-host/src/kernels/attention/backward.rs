//! The gradient: one task per head, block after block of queries.

use rayon::prelude::*;

use super::{
    Problem,
    block::{BLOCK, Rows, blocks, probabilities, visible},
    heads::{Head, Heads},
};
use crate::{
    View, ViewMut,
    simd::{
        dispatch,
        product::{Product, TILE_COLUMNS, TILE_ROWS, pack, packed_len},
        rows::sum,
    },
};

/// Inputs q, k, v, the result's gradient, the result, the logarithms of sums and perhaps a bias;
/// outputs the gradients of q, k and v.
pub(super) fn run(p: Problem, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [dq, dk, dv] = outputs else { unreachable!("three outputs") };
    let (dq, dk, dv) = (
        Heads::new(dq.f32(), &p, p.queries),
        Heads::new(dk.f32(), &p, p.keys),
        Heads::new(dv.f32(), &p, p.keys),
    );
    (0..p.batch * p.heads).into_par_iter().for_each(|index| {
        one_head(p, inputs, index / p.heads, index % p.heads, [&dq, &dk, &dv]);
    });
}

fn one_head(p: Problem, inputs: &[View<'_>], batch: usize, head: usize, out: [&Heads<'_>; 3]) {
    let input = |i: usize, rows| Head::new(inputs[i].f32(), &p, rows, batch, head);
    let (q, k, v) = (input(0, p.queries), input(1, p.keys), input(2, p.keys));
    let (g, result) = (input(3, p.queries), input(4, p.queries));
    let log_sums = &inputs[5].f32()[(batch * p.heads + head) * p.queries..][..p.queries];
    let bias = inputs.get(6).map_or(&[][..], View::f32);

    let (keys_across, keys, values_across) = (k.packed_transposed(), k.packed(), v.packed_transposed());
    let (mut queries, mut gradients, mut dq) = (Rows::new(p.width), Rows::new(p.width), Rows::new(p.width));
    let (mut scores, mut slopes) = (Rows::scores(p.keys), Rows::scores(p.keys));
    let (mut dk, mut dv) = (Sum::new(&p), Sum::new(&p));

    for (first, count) in blocks(&p) {
        let seen = visible(&p, first + count);
        queries.load(&q, first, count, p.scale);
        gradients.load(&g, first, count, 1.0);
        queries.times(&keys_across, p.width, seen, count, &mut scores);
        gradients.times(&values_across, p.width, seen, count, &mut slopes);
        let padded = count.next_multiple_of(TILE_ROWS);
        let (stride, mut left) = (scores.stride, count);
        let rows = scores.data.chunks_exact_mut(stride).zip(slopes.data.chunks_exact_mut(stride));
        for (i, (scores, slopes)) in rows.take(padded).enumerate() {
            if left == 0 {
                scores.fill(0.0);
                slopes.fill(0.0);
                continue;
            }
            left -= 1;
            let query = first + i;
            let bias = bias.chunks_exact(p.keys).nth(head * p.queries + query);
            probabilities(scores, visible(&p, query + 1), bias.unwrap_or(&[]), log_sums[query]);
            let mean = dot(g.row(query), result.row(query));
            softmax_gradient(scores, slopes, mean);
        }
        dv.add(&scores, &gradients, p.width, seen, count);
        dk.add(&slopes, &queries, p.width, seen, count);
        slopes.times_part(&keys, (seen, p.keys), p.width, count, &mut dq);
        for i in 0..count {
            // SAFETY: this task alone has this head.
            #[allow(unsafe_code)]
            let to = unsafe { out[0].row(batch, head, first + i) };
            for (to, x) in to.iter_mut().zip(dq.row(i)) {
                *to = x * p.scale;
            }
        }
    }
    for (sum, out) in [(dk, out[1]), (dv, out[2])] {
        for (i, row) in sum.data.chunks_exact(sum.stride).take(p.keys).enumerate() {
            // SAFETY: this task alone has this head.
            #[allow(unsafe_code)]
            let to = unsafe { out.row(batch, head, i) };
            to.copy_from_slice(&row[..p.width]);
        }
    }
}

/// A `keys × width` matrix that blocks add to.
struct Sum {
    data: Vec<f32>,
    stride: usize,
    packed: Vec<f32>,
}

impl Sum {
    fn new(p: &Problem) -> Self {
        let stride = p.width.next_multiple_of(TILE_COLUMNS);
        let rows = p.keys.next_multiple_of(TILE_ROWS);
        Self { data: vec![0.0; rows * stride], stride, packed: vec![0.0; packed_len(BLOCK, p.width)] }
    }

    /// Adds `left`ᵀ · `right` over the block's rows; of `left`, the `seen` first columns.
    fn add(&mut self, left: &Rows, right: &Rows, width: usize, seen: usize, count: usize) {
        let packed = &mut self.packed[..packed_len(count, width)];
        pack(&right.data, right.stride, count, width, packed);
        // Columns of `left` beyond `seen` are zero.
        let rows = seen.next_multiple_of(TILE_ROWS);
        Product {
            a: &left.data,
            a_row: 1,
            a_column: left.stride,
            b: packed,
            b_depth: count,
            c: &mut self.data,
            c_row: self.stride,
            rows,
            columns: self.stride,
            depth: count,
            accumulate: true,
        }
        .run();
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let products: Vec<f32> = a.iter().zip(b).map(|(a, b)| a * b).collect();
    sum(&products)
}

#[inline(always)]
fn softmax_gradient_body<const FMA: bool>(probabilities: &[f32], slopes: &mut [f32], mean: f32) {
    for (slope, probability) in slopes.iter_mut().zip(probabilities) {
        *slope = probability * (*slope - mean);
    }
}

dispatch!(
    /// slopes = p (slopes - mean), the derivative of softmax.
    fn softmax_gradient(probabilities: &[f32], slopes: &mut [f32], mean: f32) = softmax_gradient_body
);
