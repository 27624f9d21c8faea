//! From a file's bytes to f32 and to half precision, counting what is not finite on the way.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mlx_rs::Dtype as Element;
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements that one task decodes.
const CHUNK: usize = 1 << 16;

/// Elements converted from half precision at a time, on the stack.
const LANE: usize = 512;

/// Whether [`to_f32`] reads this type.
pub(super) fn supported(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The values of little-endian `bytes`, and how many are NaN or infinite. `dtype` must be [`supported`].
pub(super) fn to_f32(bytes: &[u8], dtype: Dtype) -> (Vec<f32>, usize) {
    let size = if dtype == Dtype::F32 { 4 } else { 2 };
    let mut out = vec![0.0; bytes.len() / size];
    let task = |(out, bytes): (&mut [f32], &[u8])| {
        match dtype {
            Dtype::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Dtype::BF16 => halves(out, bytes, bf16::from_bits),
            _ => halves(out, bytes, f16::from_bits),
        }
        // Exponent bits all set: NaN or infinite. Written so that it becomes vector code.
        out.iter().map(|x| u32::from(x.to_bits() & 0x7f80_0000 == 0x7f80_0000)).sum::<u32>() as usize
    };
    let bad = if out.len() <= CHUNK {
        task((&mut out, bytes))
    } else {
        out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size)).map(task).sum()
    };
    (out, bad)
}

/// How many values of a tensor cannot be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Unfit {
    /// NaN or infinite in the file.
    pub(super) not_finite: usize,
    /// Infinite in the element type asked for.
    pub(super) too_large: usize,
}

impl Unfit {
    /// Of these values, `not_finite` of which are not, as this element type.
    pub(super) fn of(values: &[f32], not_finite: usize, element: Element) -> Self {
        let infinite = |chunk: &[f32]| -> usize {
            chunk.iter().map(|x| usize::from(!f16::from_f32(*x).is_finite())).sum()
        };
        let too_large = match element {
            Element::Float16 => values.par_chunks(CHUNK).map(infinite).sum::<usize>() - not_finite,
            _ => 0,
        };
        Self { not_finite, too_large }
    }
}

/// How many of the values of little-endian `bytes` do not fit this element type. `dtype` must be [`supported`].
pub(super) fn unfit(bytes: &[u8], dtype: Dtype, element: Element) -> Unfit {
    let of = |bytes: &[u8]| {
        let (values, not_finite) = to_f32(bytes, dtype);
        Unfit::of(&values, not_finite, element)
    };
    let add = |a: Unfit, b: Unfit| Unfit {
        not_finite: a.not_finite + b.not_finite,
        too_large: a.too_large + b.too_large,
    };
    bytes.par_chunks(4 * CHUNK).map(of).reduce(Unfit::default, add)
}

/// The bits of values rounded to half precision, to nearest; `element` is `Bfloat16` or else taken for `Float16`.
pub(super) fn half_bits(values: &[f32], element: Element, out: &mut [i16]) {
    let bits = |x: f32| match element {
        Element::Bfloat16 => bf16::from_f32(x).to_bits(),
        _ => f16::from_f32(x).to_bits(),
    };
    out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, values)| {
        out.iter_mut().zip(values).for_each(|(out, x)| *out = bits(*x) as i16);
    });
}

/// Decodes 16-bit floats in lanes, with the hardware's conversion where there is one.
fn halves<T: Copy>(out: &mut [f32], bytes: &[u8], from_bits: impl Fn(u16) -> T)
where
    [T]: HalfFloatSliceExt,
{
    let mut lane = [from_bits(0); LANE];
    for (out, bytes) in out.chunks_mut(LANE).zip(bytes.chunks(LANE * 2)) {
        for (l, b) in lane.iter_mut().zip(bytes.chunks_exact(2)) {
            *l = from_bits(u16::from_le_bytes([b[0], b[1]]));
        }
        lane[..out.len()].convert_to_f32_slice(out);
    }
}

/// `[o, i, h, w]` to `[o, h, w, i]`.
pub(super) fn oihw_to_ohwi(x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [o, i, h, w] = shape;
    let plane = h * w;
    let mut out = Vec::with_capacity(x.len());
    for filter in 0..o {
        let filter = &x[filter * i * plane..][..i * plane];
        for at in 0..plane {
            out.extend((0..i).map(|c| filter[c * plane + at]));
        }
    }
    out
}
