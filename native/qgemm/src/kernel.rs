//! Sums of products of one panel, by instruction set.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

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
    /// 64-bit ARM with dot products: `sdot`.
    NeonDot,
}

impl Level {
    /// Whether products of 8-bit weights can be summed without overflow.
    pub(crate) fn multiplies_bytes(self) -> bool {
        !matches!(self, Self::Avx2 | Self::NeonDot)
    }
}

/// The levels of this machine, the slowest first.
pub fn levels() -> &'static [Level] {
    static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
    LEVELS.get_or_init(|| {
        #[allow(unused_mut)] // x86-64 and ARM add to it
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
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            levels.push(Level::NeonDot);
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
        #[cfg(target_arch = "aarch64")]
        Level::NeonDot => neon::accumulate(panel, depth, integers, inputs.start, sums),
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
