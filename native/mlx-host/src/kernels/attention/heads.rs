//! One head's columns of a `[N, H·D]` matrix.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::Problem;
use crate::simd::product::{pack, pack_transposed, packed_len};

/// A head of an input: rows of `width` numbers, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    data: &'a [f32],
    pub(super) stride: usize,
    rows: usize,
    width: usize,
}

impl<'a> Head<'a> {
    /// Head `head` of batch element `batch` in `[B, rows, H·D]`.
    pub(super) fn new(data: &'a [f32], p: &Problem, rows: usize, batch: usize, head: usize) -> Self {
        let stride = p.heads * p.width;
        let start = batch * rows * stride + head * p.width;
        let data = if rows == 0 { &[] } else { &data[start..start + (rows - 1) * stride + p.width] };
        Self { data, stride, rows, width: p.width }
    }

    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..index * self.stride + self.width]
    }

    /// The rows as a right factor of `rows × width`.
    pub(super) fn packed(&self) -> Vec<f32> {
        let mut panels = vec![0.0; packed_len(self.rows, self.width)];
        pack(self.data, self.stride, self.rows, self.width, &mut panels);
        panels
    }

    /// The rows as a right factor of `width × rows`.
    pub(super) fn packed_transposed(&self) -> Vec<f32> {
        let mut panels = vec![0.0; packed_len(self.width, self.rows)];
        pack_transposed(self.data, self.stride, self.width, self.rows, &mut panels);
        panels
    }
}

/// An output `[B, N, H·D]` that tasks fill head by head.
pub(super) struct Heads<'a> {
    data: *mut f32,
    length: usize,
    rows: usize,
    heads: usize,
    width: usize,
    exclusive: PhantomData<&'a mut [f32]>,
}

// SAFETY: access goes through `row`, whose callers keep to rows of their own.
unsafe impl Sync for Heads<'_> {}

impl<'a> Heads<'a> {
    pub(super) fn new(data: &'a mut [f32], p: &Problem, rows: usize) -> Self {
        assert_eq!(data.len(), p.batch * rows * p.heads * p.width);
        Self {
            data: data.as_mut_ptr(),
            length: data.len(),
            rows,
            heads: p.heads,
            width: p.width,
            exclusive: PhantomData,
        }
    }

    /// One row of one head.
    ///
    /// # Safety
    ///
    /// No two live results may be of the same row of the same head and batch element.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, batch: usize, head: usize, row: usize) -> &mut [f32] {
        let start = ((batch * self.rows + row) * self.heads + head) * self.width;
        assert!(head < self.heads && row < self.rows && start + self.width <= self.length);
        // SAFETY: inside the slice given to `new`, whose borrow `self` holds; disjoint from other
        // results by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), self.width) }
    }
}
