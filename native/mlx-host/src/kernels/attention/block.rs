//! Scores and probabilities of a block of queries.

use super::{Problem, heads::Head};
use crate::simd::{
    dispatch,
    math::exp,
    product::{Product, TILE_COLUMNS, TILE_ROWS},
    rows::{max, sum},
};

/// Queries per block, a multiple of [`TILE_ROWS`].
pub(super) const BLOCK: usize = 48;

/// The blocks of a problem's queries: first row and number of rows.
pub(super) fn blocks(p: &Problem) -> impl Iterator<Item = (usize, usize)> + use<> {
    let queries = p.queries;
    (0..queries).step_by(BLOCK).map(move |first| (first, (queries - first).min(BLOCK)))
}

/// A matrix of a block's rows, padded with zeros to whole tiles.
pub(super) struct Rows {
    pub(super) data: Vec<f32>,
    pub(super) stride: usize,
}

impl Rows {
    /// For `width` numbers per query.
    pub(super) fn new(width: usize) -> Self {
        let stride = width.next_multiple_of(TILE_COLUMNS);
        Self { data: vec![0.0; BLOCK * stride], stride }
    }

    /// For one number per query and key; also the transpose can be cut into whole tiles.
    pub(super) fn scores(keys: usize) -> Self {
        let stride = keys.next_multiple_of(TILE_COLUMNS * TILE_ROWS / 2);
        Self { data: vec![0.0; BLOCK * stride], stride }
    }

    /// Copies rows of a head, times `factor`.
    pub(super) fn load(&mut self, head: &Head<'_>, first: usize, count: usize, factor: f32) {
        let padded = count.next_multiple_of(TILE_ROWS);
        for (i, out) in self.data.chunks_exact_mut(self.stride).take(padded).enumerate() {
            if i < count {
                let row = head.row(first + i);
                for (out, x) in out.iter_mut().zip(row) {
                    *out = x * factor;
                }
                out[row.len()..].fill(0.0);
            } else {
                out.fill(0.0);
            }
        }
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.stride..(index + 1) * self.stride]
    }

    /// `count` rows times a packed `width × columns` factor.
    pub(super) fn times(&self, factor: &[f32], width: usize, columns: usize, count: usize, out: &mut Self) {
        self.times_part(factor, (width, width), columns, count, out);
    }

    /// The same with the first `depth.0` columns and the first `depth.0` of the factor's
    /// `depth.1` rows.
    pub(super) fn times_part(
        &self,
        factor: &[f32],
        depth: (usize, usize),
        columns: usize,
        count: usize,
        out: &mut Self,
    ) {
        Product {
            a: &self.data,
            a_row: self.stride,
            a_column: 1,
            b: factor,
            b_depth: depth.1,
            c: &mut out.data,
            c_row: out.stride,
            rows: count.next_multiple_of(TILE_ROWS),
            columns: columns.next_multiple_of(TILE_COLUMNS),
            depth: depth.0,
            accumulate: false,
        }
        .run();
    }
}

/// How many keys the queries before `end` see.
pub(super) fn visible(p: &Problem, end: usize) -> usize {
    if p.causal { end } else { p.keys }
}

#[inline(always)]
fn softmax_body<const FMA: bool>(scores: &mut [f32], seen: usize, bias: &[f32]) -> (f32, f32) {
    let (row, unseen) = scores.split_at_mut(seen);
    for (s, b) in row.iter_mut().zip(bias) {
        *s += b;
    }
    let top = max(row);
    for s in row.iter_mut() {
        *s = exp::<FMA>(*s - top);
    }
    unseen.fill(0.0);
    (top, sum(row))
}

#[inline(always)]
fn probabilities_body<const FMA: bool>(scores: &mut [f32], seen: usize, bias: &[f32], log_sum: f32) {
    let (row, unseen) = scores.split_at_mut(seen);
    for (s, b) in row.iter_mut().zip(bias) {
        *s += b;
    }
    for s in row.iter_mut() {
        *s = exp::<FMA>(*s - log_sum);
    }
    unseen.fill(0.0);
}

dispatch!(
    /// Turns the `seen` first scores into e^(s + bias - max) and the others into 0; returns the
    /// maximum and the sum. `bias` may be empty.
    pub(super) fn softmax(scores: &mut [f32], seen: usize, bias: &[f32]) -> (f32, f32) = softmax_body
);
dispatch!(
    /// Turns the `seen` first scores into e^(s + bias - log_sum) and the others into 0.
    pub(super) fn probabilities(
        scores: &mut [f32], seen: usize, bias: &[f32], log_sum: f32,
    ) = probabilities_body
);
