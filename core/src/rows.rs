//! Rows of a batch.

use mlx_rs::{Array, error::Exception};

/// The given rows of an array's first axis, in the given order; a row may come several times.
pub(crate) fn take_rows(array: &Array, rows: &[usize]) -> Result<Array, Exception> {
    let index: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
    array.take_axis(Array::from_slice(&index, &[index.len() as i32]), 0)
}
