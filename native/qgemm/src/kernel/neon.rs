//! Dot products of 64-bit ARM: `sdot`, by inline assembly, for its intrinsic (`vdotq_s32`) is not stable.
//!
//! It multiplies signed bytes. Weights of up to 7 bits are such as they are stored; those of 8 come in halves, as for AVX2.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::pack::{LANE, WIDTH};

/// Bytes of four inputs of a panel.
const STEP: usize = LANE * WIDTH;
/// Rows at a time: 24 registers of sums, 4 of weights, one of inputs.
const ROWS: usize = 6;

/// `panel` begins at input `first` of the rows; its values are below 128.
pub(super) fn accumulate(
    panel: &[u8],
    depth: usize,
    integers: &[i8],
    first: usize,
    sums: &mut [[i32; WIDTH]],
) {
    for (integers, sums) in integers.chunks(ROWS * depth).zip(sums.chunks_mut(ROWS)) {
        let a = &integers[first..];
        assert!(a.len() >= (sums.len() - 1) * depth + panel.len() / WIDTH);
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match sums.len() {
                    // SAFETY: `levels` has found the feature; the panel holds as many inputs as each of the rows, which
                    // are `depth` apart, has from `a` on.
                    $($n => unsafe { dot::<$n>(panel, a, depth, sums) },)*
                    _ => {}
                }
            };
        }
        by_rows!(1 2 3 4 5 6);
    }
}

/// # Safety
/// Dot products; `a` must hold R rows, `depth` apart, of a 16th of the panel's length; `sums` has R rows.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot<const R: usize>(panel: &[u8], a: &[i8], depth: usize, sums: &mut [[i32; WIDTH]]) {
    let mut wide = [[vdupq_n_s32(0); 4]; R];
    let mut a = a.as_ptr();
    for step in panel.chunks_exact(STEP) {
        // SAFETY: 64 bytes of the panel, and four integers of each of the rows.
        unsafe {
            let weights: [int8x16_t; 4] = std::array::from_fn(|i| vld1q_s8(step.as_ptr().add(16 * i).cast()));
            for (row, wide) in wide.iter_mut().enumerate() {
                let four = vdupq_n_s32(a.add(row * depth).cast::<i32>().read_unaligned());
                for (wide, weights) in wide.iter_mut().zip(weights) {
                    asm!(
                        "sdot {sum:v}.4s, {weights:v}.16b, {four:v}.16b",
                        sum = inout(vreg) *wide,
                        weights = in(vreg) weights,
                        four = in(vreg) four,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
            a = a.add(LANE);
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        for (sums, wide) in sums.chunks_exact_mut(4).zip(wide) {
            // SAFETY: `sums` has 4 numbers.
            unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(vld1q_s32(sums.as_ptr()), wide)) };
        }
    }
}
