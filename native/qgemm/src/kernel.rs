//! Sums of products of one panel, by instruction set.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::OnceLock;

use crate::pack::{LANE, WIDTH};
use crate::unpack::{unpack, unpack_halves};

/// Instruction sets that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What the target always has, in loops that the compiler vectorises.
    Portable,
    /// x86-64 with AVX2: `vpmaddubsw`.
    Avx2,
    /// x86-64 with AVX-VNNI: `vpdpbusd` on 256 bits.
    AvxVnni,
    /// x86-64 with AVX-512 VNNI: `vpdpbusd` on 512 bits.
    Avx512Vnni,
}

impl Level {
    /// Whether products of 8-bit weights can be summed without overflow.
    pub(crate) fn multiplies_bytes(self) -> bool {
        self != Self::Avx2
    }
}

/// The levels of this machine, the slowest first.
pub fn levels() -> &'static [Level] {
    static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
    LEVELS.get_or_init(|| {
        #[allow(unused_mut)] // x86-64 adds to it
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            if has!("avx2") {
                levels.push(Level::Avx2);
                if has!("avxvnni") {
                    levels.push(Level::AvxVnni);
                }
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni") {
                    levels.push(Level::Avx512Vnni);
                }
            }
        }
        levels
    })
}

/// The fastest level of this machine.
pub(crate) fn best() -> Level {
    levels().last().copied().unwrap_or(Level::Portable)
}

/// Defines a function whose body, plain loops, is also compiled for AVX2, as all levels but the portable one have it.
macro_rules! with_avx2 {
    ($(#[$meta:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name(level: Level, $($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) {
                    body($($arg),*);
                }
                if level != Level::Portable {
                    // SAFETY: `levels` has found AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = level;
            body($($arg),*);
        }
    };
}

with_avx2! {
    /// Unpacks a panel; with `halves`, 8-bit values into their lower halves and, behind those, their upper ones.
    unpack_panel(bits: u8, halves: bool, bytes: &[u8], values: &mut [u8]) {
        if halves {
            let (low, high) = values.split_at_mut(values.len() / 2);
            unpack_halves(bytes, low, high);
        } else {
            unpack(bits, bytes, values);
        }
    }
}

/// Step sizes and zero points of a group of inputs of a panel.
pub(crate) struct Group {
    pub(crate) scale: [f64; WIDTH],
    /// Of integers as they are stored.
    pub(crate) zero: [f64; WIDTH],
}

with_avx2! {
    /// Adds `scale · (sums − zero · total)` to the result; `totals` are `stride` apart.
    dequantize(
        sums: &[[i32; WIDTH]],
        totals: &[i32],
        stride: usize,
        group: &Group,
        result: &mut [[f64; WIDTH]],
    ) {
        for ((result, sums), &total) in result.iter_mut().zip(sums).zip(totals.iter().step_by(stride)) {
            let total = f64::from(total);
            for lane in 0..WIDTH {
                result[lane] += group.scale[lane] * (f64::from(sums[lane]) - group.zero[lane] * total);
            }
        }
    }
}

with_avx2! {
    /// `out = result · scale + bias`; no bias is 0.
    store(result: &[f64; WIDTH], scale: f32, bias: &[f64], out: &mut [f32]) {
        let scale = f64::from(scale);
        let mut y = result.map(|x| x * scale);
        match bias.as_array::<WIDTH>() {
            Some(bias) => (0..WIDTH).for_each(|lane| y[lane] += bias[lane]),
            None => y.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
        }
        match out.as_mut_array::<WIDTH>() {
            Some(out) => *out = y.map(|y| y as f32),
            None => out.iter_mut().zip(y).for_each(|(out, y)| *out = y as f32),
        }
    }
}

/// Adds to `sums` the products of rows of integers, `depth` apart, with an unpacked panel, over a range of inputs (both
/// ends multiples of 4). For 8-bit weights on a level that cannot multiply them, the panel is in halves.
pub(crate) fn accumulate(
    level: Level,
    bits: u8,
    panel: &[u8],
    depth: usize,
    integers: &[i8],
    inputs: Range<usize>,
    sums: &mut [[i32; WIDTH]],
) {
    assert!(inputs.start.is_multiple_of(LANE) && inputs.end.is_multiple_of(LANE) && inputs.end <= depth);
    assert!(panel.len() >= depth * WIDTH && integers.len() == sums.len() * depth);
    if bits == 8 && !level.multiplies_bytes() {
        let (low, high) = panel.split_at(panel.len() / 2);
        accumulate(level, 4, high, depth, integers, inputs.clone(), sums);
        sums.iter_mut().flatten().for_each(|sum| *sum *= 16);
        return accumulate(level, 4, low, depth, integers, inputs, sums);
    }
    let panel = &panel[inputs.start * WIDTH..inputs.end * WIDTH];
    match level {
        Level::Portable => portable(panel, depth, integers, inputs.start, sums),
        #[cfg(target_arch = "x86_64")]
        _ => x86::accumulate(level, bits, panel, depth, integers, inputs.start, sums),
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable(panel, depth, integers, inputs.start, sums),
    }
}

fn portable(panel: &[u8], depth: usize, integers: &[i8], first: usize, sums: &mut [[i32; WIDTH]]) {
    for (row, sums) in integers.chunks_exact(depth).zip(sums) {
        let (quads, _) = row[first..].as_chunks::<LANE>();
        let (weights, _) = panel.as_chunks::<{ LANE * WIDTH }>();
        // A sum for each of the four inputs of an output, so that the loop has no shuffles; a product fits 16 bits.
        let mut parts = [0_i32; LANE * WIDTH];
        for (a, weights) in quads.iter().zip(weights) {
            let a: [i16; LANE * WIDTH] = std::array::from_fn(|i| i16::from(a[i % LANE]));
            for ((part, u), a) in parts.iter_mut().zip(weights).zip(a) {
                *part += i32::from(i16::from(*u) * a);
            }
        }
        for (sum, parts) in sums.iter_mut().zip(parts.as_chunks::<LANE>().0) {
            *sum += parts.iter().sum::<i32>();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANE, Level, WIDTH};

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
    unsafe fn vnni256<const R: usize>(
        panel: &[u8],
        a: &[i8],
        depth: usize,
        _: usize,
        sums: &mut [[i32; WIDTH]],
    ) {
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
    unsafe fn vnni512<const R: usize>(
        panel: &[u8],
        a: &[i8],
        depth: usize,
        _: usize,
        sums: &mut [[i32; WIDTH]],
    ) {
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
}
