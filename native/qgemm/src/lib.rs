//! Products of 8-bit activations with packed weights of 2 to 8 bits, on the CPU.
//!
//! A [`PackedWeight`] keeps exactly `bits` bits of every integer, beside a step size and a zero point for each group of
//! weights. It is unpacked panel by panel (16 outputs at a time, into the caches) while it is multiplied; nothing of it
//! is ever held as floating point. [`PackedWeight::multiply`] computes, for a row of integers a with the step size t,
//!
//! ```text
//! y[o] = t · Σ_g s[o, g] · (Σ_{i in g} q[o, i] · a[i]  −  z[o, g] · Σ_{i in g} a[i])  +  bias[o]
//! ```
//!
//! The inner sums are exact, in 32-bit integers; the rest is f64 until the result is rounded once, to f32. So neither the
//! number of threads nor the instruction set changes a bit of it.
//!
//! # How
//!
//! Integers are stored unsigned, u = q + 2^(bits − 1), which shifts the zero point by the same: then u is the unsigned
//! and a the signed operand of `vpmaddubsw` (AVX2) and `vpdpbusd` (VNNI), and no correction is needed. `vpmaddubsw` adds
//! two products in 16 bits and saturates; weights of few bits leave room for several such sums, so that widening to 32
//! bits, which halves the speed of kernels for 8-bit weights (as in rten-gemm 0.27), is needed only once in a while:
//!
//! | bits | largest sum of two | sums before widening |
//! |---|---|---|
//! | 2 | 2 · 3 · 128 = 768 | 32 |
//! | 3 | 1,792 | 16 |
//! | 4 | 3,840 | 8 |
//! | 5 | 7,936 | 4 |
//! | 6 | 16,128 | 2 |
//! | 7 | 32,512 | 1 |
//! | 8 | as two halves of 4 bits | 8 |
//!
//! `sdot` (64-bit ARM) multiplies signed bytes, which unsigned weights of up to 7 bits are too, into 32 bits; those of 8 bits
//! come as two halves there as well.

mod kernel;
mod pack;
mod unpack;
mod weight;

pub use kernel::{Level, levels};
pub use weight::{PackedWeight, Rows};
