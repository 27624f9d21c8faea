//! A transformer's files as they are, for exports that change the weights of some layers and keep the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{Error, LayerId, Result};

/// A tensor as a safetensors file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Row-major, little-endian.
    pub bytes: Vec<u8>,
}

impl StoredTensor {
    /// A tensor of floating-point numbers of this type; F32, F16 and BF16 can be written.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other types, [`Error::NotFinite`] if a value is too large for the type.
    pub fn of_floats(values: &[f32], shape: &[usize], dtype: Dtype) -> Result<Self> {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            other => return Err(unsupported(other)),
        };
        let limit = if dtype == Dtype::F16 { f32::from(f16::MAX) } else { f32::MAX };
        if values.iter().any(|v| !v.is_finite() || v.abs() > limit) {
            return Err(Error::NotFinite { what: format!("a tensor of shape {shape:?} as {dtype:?}") });
        }
        Ok(Self { dtype, shape: shape.to_vec(), bytes })
    }

    /// The values of a tensor of F32, F16 or BF16.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other types.
    pub fn floats(&self) -> Result<Vec<f32>> {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        let (quads, _) = self.bytes.as_chunks::<4>();
        match self.dtype {
            Dtype::F32 => Ok(quads.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => Ok(pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(unsupported(other)),
        }
    }
}

fn unsupported(dtype: Dtype) -> Error {
    Error::Unsupported {
        what: format!("a tensor of {dtype:?} in a transformer's files; F32, F16 and BF16 are known"),
    }
}

/// A model's files in diffusers' arrangement, those of the transformer read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The folder with all components.
    pub folder: PathBuf,
    /// Name of the transformer's folder in it.
    pub component: &'static str,
    /// The transformer's tensors by name.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The module of each quantizable layer: its tensors are `{module}.weight` and `{module}.bias`.
    pub modules: BTreeMap<LayerId, String>,
    /// The tensors of the original layout, by names without a prefix, and what they are made of.
    pub original: BTreeMap<String, Original>,
}

/// How a tensor of a model's original layout is made of diffusers' tensors, which are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Original {
    /// It is the same.
    Whole(String),
    /// The rows of all of them, one after the other.
    Stacked(Vec<String>),
    /// Its two halves of rows, exchanged.
    Swapped(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_come_back_as_far_as_the_type_goes() {
        let values = [1.0_f32, -0.333_333_34, 65504.0, 1e-3];
        for (dtype, near) in [(Dtype::F32, 0.0), (Dtype::F16, 1.0 / 2048.0), (Dtype::BF16, 1.0 / 256.0)] {
            let tensor = StoredTensor::of_floats(&values, &[2, 2], dtype).unwrap();
            for (a, b) in tensor.floats().unwrap().iter().zip(values) {
                assert!((a - b).abs() <= near * b.abs(), "{dtype:?}: {a} {b}");
            }
        }
        assert!(StoredTensor::of_floats(&[65536.0], &[1], Dtype::F16).is_err());
        assert!(StoredTensor::of_floats(&[f32::NAN], &[1], Dtype::F32).is_err());
        assert!(StoredTensor::of_floats(&[1.0], &[1], Dtype::I8).is_err());
    }
}
