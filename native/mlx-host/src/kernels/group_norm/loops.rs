//! The loops over a task's pixels, each a row of channels.

use crate::simd::{
    dispatch,
    math::{fma, sigmoid},
};

#[inline(always)]
fn sums_body<const FMA: bool>(x: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for pixel in x.chunks_exact(sums.len()) {
        for (sum, x) in sums.iter_mut().zip(pixel) {
            *sum += x;
        }
    }
}

#[inline(always)]
fn squares_body<const FMA: bool>(x: &[f32], centres: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for pixel in x.chunks_exact(sums.len()) {
        for ((sum, x), centre) in sums.iter_mut().zip(pixel).zip(centres) {
            let d = x - centre;
            *sum = fma::<FMA>(d, d, *sum);
        }
    }
}

#[inline(always)]
fn affine_body<const FMA: bool>(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(scale.len()).zip(y.chunks_exact_mut(scale.len())) {
        for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
            *y = fma::<FMA>(*x, *scale, *shift);
        }
    }
}

#[inline(always)]
fn affine_silu_body<const FMA: bool>(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(scale.len()).zip(y.chunks_exact_mut(scale.len())) {
        for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
            let v = fma::<FMA>(*x, *scale, *shift);
            *y = v * sigmoid::<FMA>(v);
        }
    }
}

dispatch!(
    /// Σ x per channel.
    pub(super) fn channel_sums(x: &[f32], sums: &mut [f32]) = sums_body
);
dispatch!(
    /// Σ (x - centre)² per channel.
    pub(super) fn channel_squares(x: &[f32], centres: &[f32], sums: &mut [f32]) = squares_body
);
dispatch!(
    /// y = scale · x + shift per channel.
    pub(super) fn affine(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) = affine_body
);
dispatch!(
    /// SiLU of the same.
    pub(super) fn affine_silu(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) = affine_silu_body
);
