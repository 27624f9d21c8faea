//! Matrix products of blocks that fit into the caches, on one thread.
//!
//! The scheme is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (ACM TOMS 34, 2008), without its outer levels: a tile of the result stays in
//! registers, and the right factor is packed into panels as wide as a tile.
#![allow(unsafe_code)]

use super::{dispatch, math::fma};

/// Rows of a tile. Blocks have a multiple of it, padded with zeros.
pub(crate) const TILE_ROWS: usize = 6;
/// Columns of a tile and of a panel. Packed factors have a multiple of it.
pub(crate) const TILE_COLUMNS: usize = 16;
/// Steps of the inner dimension that run before the next tile: a panel's part stays in L1.
const DEPTH: usize = 256;

/// c (+)= a · b with a: rows × depth, b: depth × columns.
pub(crate) struct Product<'a> {
    /// The left factor; element (i, p) is at `i * a_row + p * a_column`.
    pub a: &'a [f32],
    pub a_row: usize,
    pub a_column: usize,
    /// The right factor: panels of 16 columns, each `depth * 16` numbers, row by row.
    pub b: &'a [f32],
    /// The result, row-major with rows `c_row` apart.
    pub c: &'a mut [f32],
    pub c_row: usize,
    /// A multiple of [`TILE_ROWS`].
    pub rows: usize,
    /// A multiple of [`TILE_COLUMNS`].
    pub columns: usize,
    pub depth: usize,
    /// Steps of `b`'s inner dimension, if it is packed deeper than `depth`.
    pub b_depth: usize,
    /// Whether to add to `c` rather than overwrite it.
    pub accumulate: bool,
}

impl Product<'_> {
    /// Multiplies.
    ///
    /// # Panics
    ///
    /// If a factor or the result is too short for the extents.
    pub(crate) fn run(self) {
        let Self { rows, columns, depth, .. } = self;
        if rows == 0 || columns == 0 {
            return;
        }
        assert!(rows % TILE_ROWS == 0 && columns % TILE_COLUMNS == 0 && depth <= self.b_depth);
        assert!(depth == 0 || (rows - 1) * self.a_row + (depth - 1) * self.a_column < self.a.len());
        assert!(columns * self.b_depth <= self.b.len());
        assert!((rows - 1) * self.c_row + columns <= self.c.len());
        multiply(self);
    }
}

#[inline(always)]
fn multiply_body<const FMA: bool>(p: Product<'_>) {
    let mut start = 0;
    loop {
        let depth = (p.depth - start).min(DEPTH);
        let accumulate = p.accumulate || start > 0;
        for (index, panel) in p.b.chunks_exact(p.b_depth * TILE_COLUMNS).enumerate() {
            let column = index * TILE_COLUMNS;
            if column >= p.columns {
                break;
            }
            for row in (0..p.rows).step_by(TILE_ROWS) {
                // SAFETY: `Product::run` has checked the extents: the tile's rows of `a`, `depth`
                // rows of the panel from `start`, and the tile of `c` lie inside the slices.
                unsafe {
                    tile::<FMA>(
                        depth,
                        p.a.as_ptr().add(row * p.a_row + start * p.a_column),
                        (p.a_row, p.a_column),
                        panel.as_ptr().add(start * TILE_COLUMNS),
                        p.c.as_mut_ptr().add(row * p.c_row + column),
                        p.c_row,
                        accumulate,
                    );
                }
            }
        }
        start += depth;
        if start >= p.depth {
            break;
        }
    }
}

dispatch!(fn multiply(p: Product<'_>) = multiply_body);

/// One tile of the result.
///
/// # Safety
///
/// `a` must be readable at `i * strides.0 + p * strides.1` for i < 6 and p < `depth`, `b` for
/// `depth * 16` numbers, and `c` readable and writable for six rows of 16, `c_row` apart.
#[inline(always)]
unsafe fn tile<const FMA: bool>(
    depth: usize,
    a: *const f32,
    strides: (usize, usize),
    b: *const f32,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
) {
    let mut sums = [[0.0f32; TILE_COLUMNS]; TILE_ROWS];
    for p in 0..depth {
        // SAFETY: the caller vouches for `b`; an array of floats is aligned like a float.
        let right = unsafe { &*b.add(p * TILE_COLUMNS).cast::<[f32; TILE_COLUMNS]>() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller vouches for `a`.
            let left = unsafe { *a.add(i * strides.0 + p * strides.1) };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = fma::<FMA>(left, *right, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: the caller vouches for `c`, and nothing else refers to it meanwhile.
        let out = unsafe { &mut *c.add(i * c_row).cast::<[f32; TILE_COLUMNS]>() };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if accumulate { *out + sum } else { *sum };
        }
    }
}

/// Packs the columns of a matrix: element (p, j) is `source[p * row + j]`, for `depth` rows and
/// `columns` columns. `panels` holds [`packed_len`] numbers.
pub(crate) fn pack(source: &[f32], row: usize, depth: usize, columns: usize, panels: &mut [f32]) {
    for (index, panel) in panels.chunks_exact_mut((depth * TILE_COLUMNS).max(1)).enumerate() {
        let first = index * TILE_COLUMNS;
        let width = columns.saturating_sub(first).min(TILE_COLUMNS);
        for (p, out) in panel.chunks_exact_mut(TILE_COLUMNS).enumerate() {
            let from = p * row + first;
            out[..width].copy_from_slice(&source[from..from + width]);
            out[width..].fill(0.0);
        }
    }
}

/// [`pack`] for the transpose: element (p, j) is `source[j * row + p]`.
pub(crate) fn pack_transposed(source: &[f32], row: usize, depth: usize, columns: usize, panels: &mut [f32]) {
    for (index, panel) in panels.chunks_exact_mut((depth * TILE_COLUMNS).max(1)).enumerate() {
        let first = index * TILE_COLUMNS;
        let width = columns.saturating_sub(first).min(TILE_COLUMNS);
        panel.fill(0.0);
        for j in 0..width {
            let line = &source[(first + j) * row..(first + j) * row + depth];
            for (out, x) in panel[j..].iter_mut().step_by(TILE_COLUMNS).zip(line) {
                *out = *x;
            }
        }
    }
}

/// How many numbers a packed factor has.
pub(crate) fn packed_len(depth: usize, columns: usize) -> usize {
    depth * columns.next_multiple_of(TILE_COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 500.0).collect()
    }

    #[test]
    fn products_match_the_definition() {
        for (rows, columns, depth) in [(6, 16, 1), (12, 32, 300), (48, 64, 64), (6, 48, 513)] {
            let a = numbers(rows * depth);
            let b = numbers(depth * columns);
            let mut packed = vec![0.0; packed_len(depth, columns)];
            pack(&b, columns, depth, columns, &mut packed);
            let transposed: Vec<f32> = (0..rows * depth).map(|i| a[(i % rows) * depth + i / rows]).collect();
            for (a, a_row, a_column) in [(&a, depth, 1), (&transposed, 1, rows)] {
                for accumulate in [false, true] {
                    let mut c = vec![1.0; rows * columns];
                    Product {
                        a,
                        a_row,
                        a_column,
                        b: &packed,
                        c: &mut c,
                        c_row: columns,
                        rows,
                        columns,
                        depth,
                        b_depth: depth,
                        accumulate,
                    }
                    .run();
                    for (i, c) in c.iter().enumerate() {
                        let (row, column) = (i / columns, i % columns);
                        let sum: f64 = (0..depth)
                            .map(|p| {
                                f64::from(a[row * a_row + p * a_column]) * f64::from(b[p * columns + column])
                            })
                            .sum();
                        let expected = sum + f64::from(u8::from(accumulate));
                        assert!((f64::from(*c) - expected).abs() < 1e-4, "{c} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn packing_transposed_agrees_with_packing() {
        let (depth, columns) = (5, 37);
        let b = numbers(depth * columns);
        let transposed: Vec<f32> =
            (0..depth * columns).map(|i| b[(i % depth) * columns + i / depth]).collect();
        let mut one = vec![9.0; packed_len(depth, columns)];
        let mut other = vec![8.0; packed_len(depth, columns)];
        pack(&b, columns, depth, columns, &mut one);
        pack_transposed(&transposed, depth, depth, columns, &mut other);
        assert_eq!(one, other);
    }
}
