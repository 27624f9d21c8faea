//! A safetensors file whose tensors must be of certain types and shapes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::pipeline::export::read_tensors;
use crate::{Error, Result, StoredTensor};

/// The file's tensors.
pub(super) struct Tensors {
    path: PathBuf,
    all: BTreeMap<String, StoredTensor>,
}

impl Tensors {
    pub(super) fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), all: read_tensors(path)? })
    }

    #[cfg(test)]
    pub(super) fn of(all: BTreeMap<String, StoredTensor>) -> Self {
        Self { path: "x.safetensors".into(), all }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.all.keys()
    }

    pub(super) fn get(&self, name: &str) -> Result<&StoredTensor> {
        self.all.get(name).ok_or_else(|| self.malformed(format!("it has no tensor `{name}`")))
    }

    /// The bytes of a tensor that must be of this type and shape.
    pub(super) fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let tensor = self.get(name)?;
        if tensor.dtype != dtype || tensor.shape != shape {
            let (found, sides) = (tensor.dtype, &tensor.shape);
            let reason = format!("`{name}` is {found:?} {sides:?}, expected {dtype:?} {shape:?}");
            return Err(self.malformed(reason));
        }
        Ok(&tensor.bytes)
    }

    /// The numbers of a tensor of this shape; F32, F16 and BF16 can be read.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.get(name)?;
        if tensor.shape != shape {
            return Err(self.malformed(format!("`{name}` has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        tensor.floats().map_err(|e| self.malformed(format!("`{name}`: {e}")))
    }

    /// The same of a tensor that need not be there: nothing then.
    pub(super) fn optional(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if self.all.contains_key(name) { self.floats(name, shape) } else { Ok(Vec::new()) }
    }

    pub(super) fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::malformed("export", &self.path, reason)
    }
}
