//! AVX2, AVX-VNNI and AVX-512 VNNI.

use std::arch::x86_64::*;

use super::Level;
use crate::pack::{LANE, WIDTH};

/// Bytes of four inputs of a panel.
const STEP: usize = LANE * WIDTH;

/// `panel` begins at input `first` of the rows.
pub(super) fn accumulate(
    level: Level,
    bits: u8,
    panel: &[u8],
    depth: usize,
    integers: &[i8],
    first: usize,
    sums: &mut [[i32; WIDTH]],
) {
    let rows = match level {
        Level::Avx512Vnni => 12,
        _ => 6,
    };
    for (integers, sums) in integers.chunks(rows * depth).zip(sums.chunks_mut(rows)) {
        let a = &integers[first..];
        assert!(a.len() >= (sums.len() - 1) * depth + panel.len() / WIDTH);
        // Sums of two products that 16 bits hold, by bits: see the crate's documentation.
        let chunk = [32, 32, 32, 16, 8, 4, 2, 1, 1][usize::from(bits.min(8))];
        macro_rules! by_rows {
            ($tile:ident; $($n:literal)*) => {
                match sums.len() {
                    // SAFETY: `levels` has found the features; the panel holds as many inputs as each of the
                    // rows, which are `depth` apart, has from `a` on.
                    $($n => unsafe { $tile::<$n>(panel, a, depth, chunk, sums) },)*
                    _ => {}
                }
            };
        }
        match level {
            Level::Avx512Vnni => by_rows!(vnni512; 1 2 3 4 5 6 7 8 9 10 11 12),
            Level::AvxVnni => by_rows!(vnni256; 1 2 3 4 5 6),
            _ => by_rows!(avx2; 1 2 3 4 5 6),
        }
    }
}

/// # Safety
/// AVX2; `a` must hold R rows, `depth` apart, of a 16th of the panel's length; `sums` has R rows.
#[target_feature(enable = "avx2")]
unsafe fn avx2<const R: usize>(
    panel: &[u8],
    a: &[i8],
    depth: usize,
    chunk: usize,
    sums: &mut [[i32; WIDTH]],
) {
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 2]; R];
    let mut a = a.as_ptr();
    for weights in panel.chunks(chunk * STEP) {
        let mut narrow = [[_mm256_setzero_si256(); 2]; R];
        for step in weights.chunks_exact(STEP) {
            // SAFETY: 64 bytes of the panel, and four integers of each of the rows.
            unsafe {
                let left = _mm256_loadu_si256(step.as_ptr().cast());
                let right = _mm256_loadu_si256(step.as_ptr().add(STEP / 2).cast());
                for (row, narrow) in narrow.iter_mut().enumerate() {
                    let four = _mm256_set1_epi32(a.add(row * depth).cast::<i32>().read_unaligned());
                    narrow[0] = _mm256_add_epi16(narrow[0], _mm256_maddubs_epi16(left, four));
                    narrow[1] = _mm256_add_epi16(narrow[1], _mm256_maddubs_epi16(right, four));
                }
                a = a.add(LANE);
            }
        }
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            for (wide, narrow) in wide.iter_mut().zip(narrow) {
                *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(narrow, ones));
            }
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        add256(sums, wide);
    }
}

/// # Safety
/// As [`avx2`], with AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni256<const R: usize>(panel: &[u8], a: &[i8], depth: usize, _: usize, sums: &mut [[i32; WIDTH]]) {
    let mut wide = [[_mm256_setzero_si256(); 2]; R];
    let mut a = a.as_ptr();
    for step in panel.chunks_exact(STEP) {
        // SAFETY: 64 bytes of the panel, and four integers of each of the rows.
        unsafe {
            let left = _mm256_loadu_si256(step.as_ptr().cast());
            let right = _mm256_loadu_si256(step.as_ptr().add(STEP / 2).cast());
            for (row, wide) in wide.iter_mut().enumerate() {
                let four = _mm256_set1_epi32(a.add(row * depth).cast::<i32>().read_unaligned());
                wide[0] = _mm256_dpbusd_avx_epi32(wide[0], left, four);
                wide[1] = _mm256_dpbusd_avx_epi32(wide[1], right, four);
            }
            a = a.add(LANE);
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        add256(sums, wide);
    }
}

/// # Safety
/// As [`avx2`], with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn vnni512<const R: usize>(panel: &[u8], a: &[i8], depth: usize, _: usize, sums: &mut [[i32; WIDTH]]) {
    let mut wide = [_mm512_setzero_si512(); R];
    let mut a = a.as_ptr();
    for step in panel.chunks_exact(STEP) {
        // SAFETY: 64 bytes of the panel, and four integers of each of the rows.
        unsafe {
            let weights = _mm512_loadu_si512(step.as_ptr().cast());
            for (row, wide) in wide.iter_mut().enumerate() {
                let four = _mm512_set1_epi32(a.add(row * depth).cast::<i32>().read_unaligned());
                *wide = _mm512_dpbusd_epi32(*wide, weights, four);
            }
            a = a.add(LANE);
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        // SAFETY: `sums` has 16 numbers.
        unsafe {
            let before = _mm512_loadu_si512(sums.as_ptr().cast());
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(before, wide));
        }
    }
}

#[target_feature(enable = "avx2")]
fn add256(sums: &mut [i32; WIDTH], wide: [__m256i; 2]) {
    for (sums, wide) in sums.chunks_exact_mut(WIDTH / 2).zip(wide) {
        // SAFETY: `sums` has 8 numbers.
        unsafe {
            let before = _mm256_loadu_si256(sums.as_ptr().cast());
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi32(before, wide));
        }
    }
}
