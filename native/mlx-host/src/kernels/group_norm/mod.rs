//! Group norm (Wu and He, arXiv:1803.08494) over channels-last images, with SiLU if asked for.

mod loops;
mod plain;

use mlx_rs::{Array, error::Exception};
use rayon::prelude::*;

use crate::{HostKernel, View, ViewMut, host};

/// Pixels per task. Part of the order of summation, so not a tuning knob.
const PIXELS: usize = 128;

#[derive(Clone, Copy)]
pub(crate) struct Form {
    groups: usize,
    eps: f32,
    silu: bool,
}

/// Normalises each group of channels of each batch element, scales and shifts each channel, and
/// applies SiLU if `silu`.
///
/// `x` is `[B, .., C]`, such as NHWC images; `weight` and `bias` are `[C]`; `groups` divides C. The
/// result is like `x`. Gradients for all three, of MLX operations.
///
/// # Errors
///
/// If the shapes do not fit, or MLX refuses the operation.
pub fn group_norm_silu(
    x: &Array,
    groups: usize,
    weight: &Array,
    bias: &Array,
    eps: f32,
    silu: bool,
) -> Result<Array, Exception> {
    let channels = x.shape().last().copied().unwrap_or(0);
    let fits = x.ndim() >= 2
        && weight.shape() == [channels]
        && bias.shape() == [channels]
        && groups > 0
        && (channels as usize).is_multiple_of(groups);
    host::require(fits, || {
        format!(
            "group_norm_silu takes x [B, .., C], weight and bias [C], not {:?}, {:?} and {:?} with {groups} groups",
            x.shape(),
            weight.shape(),
            bias.shape()
        )
    })?;
    let form = Form { groups, eps, silu };
    if !host::suits(&[x, weight, bias]) || x.size() == 0 {
        return plain::group_norm(&[x, weight, bias], form);
    }
    HostKernel::new("group_norm_silu", move |inputs, outputs| forward(form, inputs, outputs))
        .with_vjp(move |request| plain::gradients(form, request))
        .call_f32(&[x, weight, bias], x.shape())
}

fn forward(form: Form, inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]) {
    let [x, weight, bias] = inputs else { unreachable!("three inputs") };
    let channels = weight.f32().len();
    let image = x.f32().len() / x.shape()[0] as usize;
    let task = PIXELS * channels;
    outputs[0].f32().par_chunks_mut(image).zip(x.f32().par_chunks(image)).for_each(|(y, x)| {
        let parts: Vec<Vec<Moments>> =
            x.par_chunks(task).map(|x| moments(x, channels, form.groups)).collect();
        let (mut scale, mut shift) = (vec![0.0f32; channels], vec![0.0f32; channels]);
        let per_group = channels / form.groups;
        for group in 0..form.groups {
            let all = parts.iter().map(|part| part[group]).fold(Moments::default(), Moments::and);
            let deviation = (all.squares / all.count + f64::from(form.eps)).sqrt();
            for c in group * per_group..(group + 1) * per_group {
                let factor = f64::from(weight.f32()[c]) / deviation;
                scale[c] = factor as f32;
                shift[c] = (f64::from(bias.f32()[c]) - all.mean * factor) as f32;
            }
        }
        y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
            if form.silu {
                loops::affine_silu(x, &scale, &shift, y);
            } else {
                loops::affine(x, &scale, &shift, y);
            }
        });
    });
}

/// Count, mean and squared deviations of some numbers.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Those of both sets together (Chan, Golub and LeVeque, 1979).
    fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let apart = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + apart * other.count / count,
            squares: self.squares + other.squares + apart * apart * self.count * other.count / count,
        }
    }
}

/// The moments of each group over a task's pixels.
fn moments(x: &[f32], channels: usize, groups: usize) -> Vec<Moments> {
    let per_group = channels / groups;
    let count = (x.len() / channels * per_group) as f64;
    let total = |sums: &[f32]| sums.iter().map(|&s| f64::from(s)).sum::<f64>();
    let mut sums = vec![0.0f32; channels];
    loops::channel_sums(x, &mut sums);
    let means: Vec<f32> = sums.chunks_exact(per_group).map(|sums| (total(sums) / count) as f32).collect();
    let centres: Vec<f32> = (0..channels).map(|c| means[c / per_group]).collect();
    loops::channel_squares(x, &centres, &mut sums);
    let squares = sums.chunks_exact(per_group).map(total);
    means.iter().zip(squares).map(|(&mean, squares)| Moments { count, mean: mean.into(), squares }).collect()
}
