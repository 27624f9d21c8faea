//! The loops over a task's rows.

use crate::simd::{
    dispatch,
    math::fma,
    rows::{sum, sum_of_squares},
};

/// Mean (0 if not centred) and reciprocal deviation of a row.
#[inline(always)]
fn moments<const FMA: bool>(x: &[f32], centred: bool, eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = if centred { sum(x) / count } else { 0.0 };
    let variance = sum_of_squares::<FMA>(x, mean) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[inline(always)]
fn forward_body<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    b: &[f32],
    y: &mut [f32],
    centred: bool,
    offset: f32,
    eps: f32,
) {
    let width = w.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let (mean, r) = moments::<FMA>(x, centred, eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = fma::<FMA>((x - mean) * r, w + offset, *b);
        }
    }
}

const LANES: usize = 32;

/// Σ h and Σ h·x̂ for h = g (w + offset), x̂ = (x - mean) r.
#[inline(always)]
fn projections<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    mean: f32,
    r: f32,
    offset: f32,
) -> (f32, f32) {
    let (mut plain, mut along) = ([0.0f32; LANES], [0.0f32; LANES]);
    let mut step = |x: &[f32], w: &[f32], g: &[f32]| {
        let lanes = plain.iter_mut().zip(along.iter_mut());
        for (((plain, along), x), (w, g)) in lanes.zip(x).zip(w.iter().zip(g)) {
            let h = g * (w + offset);
            *plain += h;
            *along = fma::<FMA>(h, (x - mean) * r, *along);
        }
    };
    let whole = x.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        step(&x[i..i + LANES], &w[i..i + LANES], &g[i..i + LANES]);
    }
    step(&x[whole..], &w[whole..], &g[whole..]);
    (sum(&plain), sum(&along))
}

#[inline(always)]
fn input_gradient<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    dx: &mut [f32],
    (mean, r): (f32, f32),
    centred: bool,
    offset: f32,
) {
    let count = x.len() as f32;
    let (plain, along) = projections::<FMA>(x, w, g, mean, r, offset);
    let plain = if centred { plain / count } else { 0.0 };
    let along = along / count;
    for (((dx, x), w), g) in dx.iter_mut().zip(x).zip(w).zip(g) {
        let normal = (x - mean) * r;
        *dx = r * fma::<FMA>(-normal, along, fma::<FMA>(*g, w + offset, -plain));
    }
}

#[inline(always)]
fn backward_body<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    dx: &mut [f32],
    centred: bool,
    offset: f32,
    eps: f32,
) {
    let width = w.len();
    let rows = x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, g), dx) in rows {
        let moments = moments::<FMA>(x, centred, eps);
        input_gradient::<FMA>(x, w, g, dx, moments, centred, offset);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_affine_body<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
    centred: bool,
    offset: f32,
    eps: f32,
) {
    let width = w.len();
    dw.fill(0.0);
    db.fill(0.0);
    let rows = x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, g), dx) in rows {
        let (mean, r) = moments::<FMA>(x, centred, eps);
        input_gradient::<FMA>(x, w, g, dx, (mean, r), centred, offset);
        for (((dw, db), x), g) in dw.iter_mut().zip(db.iter_mut()).zip(x).zip(g) {
            *dw = fma::<FMA>(*g, (x - mean) * r, *dw);
            *db += g;
        }
    }
}

dispatch!(
    /// Normalises whole rows of `x` into `y`; `w` and `b` are one row long.
    pub(super) fn forward(
        x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], centred: bool, offset: f32, eps: f32,
    ) = forward_body
);
dispatch!(
    /// The gradient with respect to `x` for the gradient `g` of the output.
    pub(super) fn backward(
        x: &[f32], w: &[f32], g: &[f32], dx: &mut [f32], centred: bool, offset: f32, eps: f32,
    ) = backward_body
);
dispatch!(
    /// The same, and the sums over these rows that are the gradients of `w` and `b`.
    pub(super) fn backward_affine(
        x: &[f32], w: &[f32], g: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32],
        centred: bool, offset: f32, eps: f32,
    ) = backward_affine_body
);
