//! The step in one pass over memory, on the CPU: vectorised, on all threads.

use mlx_host::HostKernel;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use super::super::math::{at_least, at_most};
use super::super::soft::{rectified_sigmoid, regulariser_slope, slope_at};
use super::pass::{Frame, Numbers, State};

/// Weights that a thread takes at a time.
const SHARE: usize = 16_384;

/// V, its moments and the soft weight after the step; V and the moments in place.
pub(super) fn step(
    frame: &Frame,
    state: &State,
    gradient: &Array,
    numbers: Numbers,
) -> Result<Vec<Array>, Exception> {
    let (low, high) = (frame.low, frame.high);
    let kernel = HostKernel::new("adaround", move |inputs, outputs| {
        let [base, scale, zero, gradient, old] = inputs else { unreachable!("five inputs") };
        let [v, first, second, soft] = outputs else { unreachable!("four outputs") };
        let (scale, zero, base) = (scale.f32(), zero.f32(), base.data::<i16>());
        let group_len = base.len() / scale.len();
        v.f32()
            .par_chunks_mut(SHARE)
            .zip(first.f32().par_chunks_mut(SHARE))
            .zip(second.f32().par_chunks_mut(SHARE))
            .zip(soft.f32().par_chunks_mut(SHARE))
            .zip(base.par_chunks(SHARE))
            .zip(gradient.f32().par_chunks(SHARE))
            .zip(old.f32().par_chunks(SHARE))
            .enumerate()
            .for_each(|(part, ((((((v, first), second), soft), base), gradient), old))| {
                let mut at = 0;
                while at < v.len() {
                    let position = part * SHARE + at;
                    let group = position / group_len;
                    let part = at..v.len().min(at + (group + 1) * group_len - position);
                    at = part.end;
                    let run = Run { low, high, scale: scale[group], zero: zero[group], numbers };
                    let sweep = if numbers.lambda == 0.0 { sweep::<false> } else { sweep::<true> };
                    sweep(
                        &run,
                        &mut v[part.clone()],
                        &mut first[part.clone()],
                        &mut second[part.clone()],
                        &mut soft[part.clone()],
                        Given {
                            base: &base[part.clone()],
                            gradient: &gradient[part.clone()],
                            old: &old[part],
                        },
                    );
                }
            });
    });
    // Not in place: what a step computes may still need the old ones.
    let inputs = [&frame.base, &frame.scale, &frame.zero, gradient, &state.soft];
    let state = [&state.v, &state.first, &state.second];
    kernel.call_in_place(&state, &inputs, &[(frame.base.shape(), Dtype::Float32)])
}

/// Weights that share a step size.
#[derive(Debug, Clone, Copy)]
struct Run {
    low: f32,
    high: f32,
    scale: f32,
    zero: f32,
    numbers: Numbers,
}

/// What a step reads of them: ⌊W/s⌋ + z, the loss' gradient, and the soft weights of the present V.
#[derive(Clone, Copy)]
struct Given<'a> {
    base: &'a [i16],
    gradient: &'a [f32],
    old: &'a [f32],
}

/// Weights that [`sweep`] takes through its stages at a time: their numbers stay in the innermost cache.
const BLOCK: usize = 256;

/// One step of Adam on V and the soft weights of the new V.
///
/// h of the present V is taken from the present soft weights, which saves an exponential. In stages, since one long chain of
/// dependent operations would leave the processor waiting: short loops let it work on several weights at once. Compiled for several instruction sets, of which the best is taken at run time. None has
/// fused operations, so that the result is the same everywhere.
#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn sweep<const REGULARISED: bool>(
    run: &Run,
    v: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    soft: &mut [f32],
    given: Given<'_>,
) {
    let Run { low, high, scale, zero, numbers: Numbers { adam, gain, lambda, beta } } = *run;
    let Given { base, gradient, old } = given;
    let (gain, per_step) = (gain * scale, 1.0 / scale);
    let (mut rounding, mut slopes, mut towards) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
    let variables = v.chunks_mut(BLOCK).zip(first.chunks_mut(BLOCK)).zip(second.chunks_mut(BLOCK));
    let given = base.chunks(BLOCK).zip(gradient.chunks(BLOCK)).zip(old.chunks(BLOCK));
    for ((((v, first), second), soft), ((base, gradient), old)) in
        variables.zip(soft.chunks_mut(BLOCK)).zip(given)
    {
        let n = v.len();
        let (rounding, slopes, towards) = (&mut rounding[..n], &mut slopes[..n], &mut towards[..n]);
        let (first, second, soft) = (&mut first[..n], &mut second[..n], &mut soft[..n]);
        let (base, gradient, old) = (&base[..n], &gradient[..n], &old[..n]);
        for i in 0..n {
            let base = f32::from(base[i]);
            let h = old[i] * per_step + (zero - base);
            rounding[i] = h;
            slopes[i] = if (base >= low) & (base < high) { slope_at(v[i], h) } else { 0.0 };
        }
        for i in 0..n {
            towards[i] = gradient[i] * gain;
            if REGULARISED {
                towards[i] += lambda * regulariser_slope(rounding[i], beta);
            }
        }
        for i in 0..n {
            v[i] = adam.update(v[i], &mut first[i], &mut second[i], towards[i] * slopes[i]);
        }
        for i in 0..n {
            let on_grid = at_most(at_least(f32::from(base[i]) + rectified_sigmoid(v[i]).0, low), high);
            soft[i] = (on_grid - zero) * scale;
        }
    }
}
