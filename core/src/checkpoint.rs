//! A model's files as they are, for exports that change the weights of some layers and keep the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value};

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

    /// The same numbers in another type.
    ///
    /// # Errors
    /// As [`Self::floats`] and [`Self::of_floats`].
    pub fn to_dtype(&self, dtype: Dtype) -> Result<Self> {
        if self.dtype == dtype {
            return Ok(self.clone());
        }
        Self::of_floats(&self.floats()?, &self.shape, dtype)
    }
}

fn unsupported(dtype: Dtype) -> Error {
    Error::Unsupported {
        what: format!("a tensor of {dtype:?} in a transformer's files; F32, F16 and BF16 are known"),
    }
}

/// A transformer's weights as its files hold them, under diffusers' names whatever the files' layout is.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Name of the transformer's folder in diffusers' layout.
    pub component: &'static str,
    /// diffusers' `config.json` of the transformer.
    pub config: Map<String, Value>,
    /// The tensors.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The module of each quantizable layer: its tensors are `{module}.weight` and `{module}.bias`.
    pub modules: BTreeMap<LayerId, String>,
    /// The tensors of the original layout, by names without a prefix, and what they are made of.
    pub original: BTreeMap<String, Original>,
    /// What their names begin with in a file that holds the whole model.
    pub prefix: &'static str,
}

impl Checkpoint {
    /// A tensor by name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<&StoredTensor> {
        self.tensors.get(name).ok_or_else(|| missing(name))
    }

    /// The module of a quantizable layer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the files do not name it.
    pub fn module(&self, layer: &LayerId) -> Result<&str> {
        let unnamed =
            || Error::Unsupported { what: format!("layer {layer}: the model's files do not name it") };
        self.modules.get(layer).map(String::as_str).ok_or_else(unnamed)
    }
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
    /// The same with `[1, 1]` at the end of its shape: a linear layer as a 1×1 convolution.
    Pointwise(String),
}

impl Original {
    /// The tensors that it is made of.
    pub fn parts(&self) -> &[String] {
        match self {
            Self::Whole(part) | Self::Swapped(part) | Self::Pointwise(part) => std::slice::from_ref(part),
            Self::Stacked(parts) => parts,
        }
    }

    /// The original's tensor, byte for byte of its parts.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a part is not there, or parts to be stacked are not of one type.
    pub fn assemble(&self, tensors: &BTreeMap<String, StoredTensor>) -> Result<StoredTensor> {
        let of = |name: &String| tensors.get(name).ok_or_else(|| missing(name));
        match self {
            Self::Whole(part) => of(part).cloned(),
            Self::Swapped(part) => {
                let mut tensor = of(part)?.clone();
                let half = tensor.bytes.len() / 2;
                tensor.bytes.rotate_left(half);
                Ok(tensor)
            }
            Self::Pointwise(part) => {
                let mut tensor = of(part)?.clone();
                tensor.shape.extend([1, 1]);
                Ok(tensor)
            }
            Self::Stacked(parts) => {
                let (first, rest) = parts.split_first().ok_or_else(|| missing(""))?;
                let mut tensor = of(first)?.clone();
                for part in rest {
                    let next = of(part)?;
                    if next.dtype != tensor.dtype {
                        let (a, b) = (tensor.dtype, next.dtype);
                        let what = format!(
                            "`{first}` is {a:?} and `{part}` {b:?}, which the original layout stacks"
                        );
                        return Err(Error::Unsupported { what });
                    }
                    tensor.bytes.extend(&next.bytes);
                    if let (Some(rows), Some(more)) = (tensor.shape.first_mut(), next.shape.first()) {
                        *rows += more;
                    }
                }
                Ok(tensor)
            }
        }
    }
}

fn missing(name: &str) -> Error {
    Error::Unsupported { what: format!("the model's files have no tensor `{name}`") }
}

/// How the files of a model are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// diffusers': a folder for each component.
    Folder,
    /// The original: one file with all weights, and configurations and tokenizers in folders of diffusers' names beside it.
    SingleFile,
}

/// What belongs to a model beside its transformer's weights.
#[derive(Debug, Clone, Default)]
pub struct Companions {
    /// Tensors that lie in one file with the transformer's; none in [`Arrangement::Folder`].
    pub tensors: BTreeMap<String, StoredTensor>,
    /// Files, by their path below the model's folder.
    pub files: BTreeMap<PathBuf, Companion>,
}

/// A file that belongs to a model.
#[derive(Debug, Clone)]
pub enum Companion {
    /// The same as this one.
    Copy(PathBuf),
    /// A JSON document.
    Json(Map<String, Value>),
    /// A safetensors file.
    Tensors(BTreeMap<String, StoredTensor>),
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

    #[test]
    fn originals_are_put_together_of_their_parts() {
        let tensor =
            |values: &[f32], shape: &[usize]| StoredTensor::of_floats(values, shape, Dtype::F16).unwrap();
        let mut tensors: BTreeMap<String, StoredTensor> = [
            ("q".to_owned(), tensor(&[1.0, 2.0], &[1, 2])),
            ("k".to_owned(), tensor(&[3.0, 4.0, 5.0, 6.0], &[2, 2])),
        ]
        .into();
        let made = |original: &Original, tensors: &BTreeMap<String, StoredTensor>| {
            original.assemble(tensors).map(|t| (t.shape.clone(), t.floats().unwrap()))
        };
        let stacked = Original::Stacked(vec!["q".into(), "k".into()]);
        let expected = (vec![3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(made(&stacked, &tensors).unwrap(), expected);
        let swapped = Original::Swapped("k".into());
        assert_eq!(made(&swapped, &tensors).unwrap(), (vec![2, 2], vec![5.0, 6.0, 3.0, 4.0]));
        let pointwise = Original::Pointwise("q".into());
        assert_eq!(made(&pointwise, &tensors).unwrap(), (vec![1, 2, 1, 1], vec![1.0, 2.0]));
        let error = made(&Original::Whole("v".into()), &tensors).unwrap_err().to_string();
        assert!(error.contains("no tensor `v`"), "{error}");
        let wide = tensors["k"].to_dtype(Dtype::F32).unwrap();
        assert_eq!(wide.floats().unwrap(), tensors["k"].floats().unwrap());
        tensors.insert("k".into(), wide);
        assert!(stacked.assemble(&tensors).unwrap_err().to_string().contains("F32"));
    }
}
