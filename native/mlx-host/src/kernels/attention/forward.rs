//! The forward pass: one task per head and block of queries.

use rayon::prelude::*;

use super::{
    Problem,
    block::{Rows, blocks, softmax, visible},
    heads::{Head, Heads},
};
use crate::{View, ViewMut};

/// Inputs q, k, v and perhaps a bias; outputs the result and `[B, H, N]` logarithms of sums.
pub(super) fn run(p: Problem, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [result, log_sums] = outputs else { unreachable!("two outputs") };
    let result = Heads::new(result.f32(), &p, p.queries);
    let bias = inputs.get(3).map_or(&[][..], View::f32);
    log_sums.f32().par_chunks_mut(p.queries).enumerate().for_each(|(index, log_sums)| {
        let (batch, head) = (index / p.heads, index % p.heads);
        let input = |i: usize, rows| Head::new(inputs[i].f32(), &p, rows, batch, head);
        let q = input(0, p.queries);
        let keys = input(1, p.keys).packed_transposed();
        let values = input(2, p.keys).packed();
        let block_size = super::block::BLOCK;
        log_sums.par_chunks_mut(block_size).zip(blocks(&p).collect::<Vec<_>>()).for_each_init(
            || (Rows::new(p.width), Rows::scores(p.keys), Rows::new(p.width)),
            |(queries, scores, out), (log_sums, (first, count))| {
                queries.load(&q, first, count, p.scale);
                let seen = visible(&p, first + count);
                queries.times(&keys, p.width, seen, count, scores);
                let stride = scores.stride;
                let mut sums = [1.0f32; super::block::BLOCK];
                for (i, row) in scores.data.chunks_exact_mut(stride).take(count).enumerate() {
                    let query = first + i;
                    let bias = bias.chunks_exact(p.keys).nth(head * p.queries + query);
                    let (top, sum) = softmax(row, visible(&p, query + 1), bias.unwrap_or(&[]));
                    sums[i] = sum;
                    log_sums[i] = top + sum.ln();
                }
                scores.times_part(&values, (seen, p.keys), p.width, count, out);
                for (i, sum) in sums.iter().enumerate().take(count) {
                    // SAFETY: this task alone has this head's block of rows.
                    #[allow(unsafe_code)]
                    let to = unsafe { result.row(batch, head, first + i) };
                    for (to, x) in to.iter_mut().zip(out.row(i)) {
                        *to = x / sum;
                    }
                }
            },
        );
    });
}
