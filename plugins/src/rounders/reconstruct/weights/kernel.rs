//! The step in one pass over memory, on the CPU: vectorised, on all threads.

use mlx_host::HostKernel;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use super::super::math::{at_least, at_most};
use super::super::soft::{rectified_sigmoid, regulariser_slope};
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
        let [base, scale, zero, gradient] = inputs else { unreachable!("four inputs") };
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
            .enumerate()
            .for_each(|(part, (((((v, first), second), soft), base), gradient))| {
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
                        &base[part.clone()],
                        &gradient[part],
                    );
                }
            });
    });
    let state = [&state.v, &state.first, &state.second];
    let inputs = [&frame.base, &frame.scale, &frame.zero, gradient];
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

/// One step of Adam on V and the soft weights of the new V.
///
/// Compiled for several instruction sets, of which the best is taken at run time. None has fused operations, so
/// that the result is the same everywhere.
#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn sweep<const REGULARISED: bool>(
    run: &Run,
    v: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    soft: &mut [f32],
    base: &[i16],
    gradient: &[f32],
) {
    let Run { low, high, scale, zero, numbers: Numbers { adam, gain, lambda, beta } } = *run;
    let gain = gain * scale;
    let all = v.iter_mut().zip(first).zip(second).zip(soft).zip(base).zip(gradient);
    for (((((v, first), second), soft), &base), &gradient) in all {
        let base = f32::from(base);
        let (h, slope) = rectified_sigmoid(*v);
        let mut towards = gradient * gain;
        if REGULARISED {
            towards += lambda * regulariser_slope(h, beta);
        }
        let slope = if (base >= low) & (base < high) { slope } else { 0.0 };
        *v = adam.update(*v, first, second, towards * slope);
        let on_grid = at_most(at_least(base + rectified_sigmoid(*v).0, low), high);
        *soft = (on_grid - zero) * scale;
    }
}
