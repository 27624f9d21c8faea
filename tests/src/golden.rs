//! Reference tensors by name.
//!
//! These helpers panic with the reason: a test that cannot read its reference has failed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use safetensors::{Dtype, SafeTensors};
use taq_core::metrics::relative_l2_arrays;

/// The tensors of a safetensors file.
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// Reads a file of the folder `tests/golden`, such as `tiny-sd3/golden.safetensors`.
    pub fn open(name: &str) -> Self {
        Self::read(&crate::paths::golden().join(name))
    }

    /// Reads a safetensors file.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        Self { path: path.to_owned(), bytes }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The file's metadata.
    pub fn metadata(&self) -> HashMap<String, String> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes)
            .unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        metadata.metadata().clone().unwrap_or_default()
    }

    /// A tensor with the shape it has in the file; f32 stays, f64 becomes f32, i32 stays, i64 becomes i32.
    pub fn tensor(&self, name: &str) -> Array {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|_| {
            panic!("{} has no tensor `{name}`; it has {}", self.path.display(), self.names().join(", "))
        });
        let shape: Vec<i32> =
            view.shape().iter().map(|&d| i32::try_from(d).expect("a small tensor")).collect();
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => Array::from_slice(&decode(data, f32::from_le_bytes), &shape),
            Dtype::F64 => Array::from_slice(&decode(data, |b| f64::from_le_bytes(b) as f32), &shape),
            Dtype::I32 => Array::from_slice(&decode(data, i32::from_le_bytes), &shape),
            Dtype::I64 => Array::from_slice(&decode(data, |b| i64::from_le_bytes(b) as i32), &shape),
            other => panic!("tensor `{name}` of {} is {other:?}", self.path.display()),
        }
    }

    /// A tensor of images or latents, from channels-first `[batch, channels, h, w]` to taq's
    /// `[batch, h, w, channels]`.
    pub fn nhwc(&self, name: &str) -> Array {
        let tensor = self.tensor(name);
        tensor.transpose_axes(&[0, 2, 3, 1]).unwrap_or_else(|e| panic!("tensor `{name}`: {e}"))
    }
}

fn decode<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (whole, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty(), "a whole number of elements");
    whole.iter().map(|b| from(*b)).collect()
}

/// ‖a − reference‖ / ‖reference‖ of two f32 arrays of one shape.
pub fn relative_l2(a: &Array, reference: &Array) -> f64 {
    relative_l2_arrays(a, reference).unwrap_or_else(|e| panic!("{e}"))
}

/// Fails with the error and the limit if two arrays are further apart than `limit` (relative L2), or differ in
/// shape.
#[track_caller]
pub fn assert_near(what: &str, a: &Array, reference: &Array, limit: f64) {
    let error = relative_l2(a, reference);
    assert!(error <= limit, "{what}: relative L2 error {error:.3e}, at most {limit:.1e} was expected");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_tensors_can_be_read() {
        for file in [
            "emoji_sd3.safetensors",
            "evaluator.safetensors",
            "tiny-sd3/golden.safetensors",
            "tiny-sd35/golden.safetensors",
        ] {
            let golden = Golden::open(file);
            assert!(!golden.names().is_empty());
            for name in golden.names() {
                let tensor = golden.tensor(&name);
                assert!(tensor.size() > 0, "{file}: {name}");
            }
        }
        assert!(!Golden::open("emoji_sd3.safetensors").metadata().is_empty());
    }

    #[test]
    fn nhwc_moves_the_channels_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let data: Vec<u8> = (0..24u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![1, 2, 3, 4], &data).unwrap();
        safetensors::serialize_to_file([("x", view)], None, &path).unwrap();
        let nhwc = Golden::read(&path).nhwc("x");
        assert_eq!(nhwc.shape(), [1, 3, 4, 2]);
        let expected: Vec<f32> = (0..12).flat_map(|p| [p as f32, (p + 12) as f32]).collect();
        assert_near("nhwc", &nhwc, &Array::from_slice(&expected, &[1, 3, 4, 2]), 0.0);
    }

    #[test]
    #[should_panic(expected = "x: relative L2 error 1.000e0, at most 5.0e-1 was expected")]
    fn tensors_far_apart_are_told() {
        let (a, b) = (Array::from_slice(&[0.0f32], &[1]), Array::from_slice(&[2.0f32], &[1]));
        assert_near("x", &a, &b, 0.5);
    }
}
