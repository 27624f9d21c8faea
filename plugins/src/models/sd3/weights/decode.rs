//! From a file's bytes to f32, counting what is not finite on the way.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
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

/// How many of the values of little-endian `bytes` are NaN or infinite. `dtype` must be [`supported`].
pub(super) fn not_finite(bytes: &[u8], dtype: Dtype) -> usize {
    bytes.par_chunks(4 * CHUNK).map(|bytes| to_f32(bytes, dtype).1).sum()
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
