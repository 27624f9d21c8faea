//! npz arrays as MLX arrays and back.

use mlx_rs::error::AsSliceError;
use mlx_rs::{Array, ArrayElement, Dtype};

use super::{Element, Npz, NpzWriter};
use crate::{Error, Result};

/// The elements of an array in row-major order; evaluates it.
///
/// # Errors
/// [`Error::Unsupported`] if its type is not `T`.
pub(crate) fn host_values<T: ArrayElement + Clone>(array: &Array) -> Result<Vec<T>> {
    if array.size() == 0 {
        return Ok(Vec::new());
    }
    match array.contiguous()?.try_as_slice::<T>() {
        Ok(values) => Ok(values.to_vec()),
        Err(AsSliceError::Exception(e)) => Err(e.into()),
        Err(AsSliceError::DtypeMismatch { expecting, found }) => Err(Error::Unsupported {
            what: format!("expected an array of {expecting:?}, found {found:?}; convert it first"),
        }),
        Err(other) => Err(Error::Unsupported { what: format!("MLX array: {other}") }),
    }
}

impl NpzWriter<'_> {
    /// Adds an MLX array of f32, i32, i64, i8, u8, u64 or bool; evaluates it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other types, and as [`Self::add`].
    pub fn array(&mut self, name: &str, array: &Array) -> Result<()> {
        match array.dtype() {
            Dtype::Float32 => self.typed::<f32>(name, array),
            Dtype::Int32 => self.typed::<i32>(name, array),
            Dtype::Int64 => self.typed::<i64>(name, array),
            Dtype::Int8 => self.typed::<i8>(name, array),
            Dtype::Uint8 => self.typed::<u8>(name, array),
            Dtype::Uint64 => self.typed::<u64>(name, array),
            Dtype::Bool => self.typed::<bool>(name, array),
            other => Err(Error::Unsupported {
                what: format!(
                    "array `{name}` of `{}` is {other:?}, which taq does not store; convert it to Float32",
                    self.path().display()
                ),
            }),
        }
    }

    fn typed<T: Element + ArrayElement>(&mut self, name: &str, array: &Array) -> Result<()> {
        let shape: Vec<usize> = array.shape().iter().map(|&d| d.unsigned_abs() as usize).collect();
        self.add(name, &shape, &host_values::<T>(array)?)
    }
}

impl Npz {
    /// The array of this name for MLX, with the type and shape it has in the file.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is missing or damaged, if it has over 2³¹ − 1 elements, or if its type is not
    /// f32, i32, i64, i8, u8, u64 or bool.
    pub fn array(&self, name: &str) -> Result<Array> {
        match self.descr(name)?.as_str() {
            f32::DESCR => self.typed::<f32>(name, Array::from_slice),
            i32::DESCR => self.typed::<i32>(name, Array::from_slice),
            i64::DESCR => self.typed::<i64>(name, Array::from_slice),
            i8::DESCR => self.typed::<i8>(name, Array::from_slice),
            u8::DESCR => self.typed::<u8>(name, Array::from_slice),
            u64::DESCR => self.typed::<u64>(name, Array::from_slice),
            bool::DESCR => self.typed::<bool>(name, Array::from_slice),
            other => {
                let found = super::element::dtype_name(other);
                Err(self.wrong(name, format!("expected f32, found {found}; save it as float32")))
            }
        }
    }

    /// An f32 array for MLX that must have this shape.
    ///
    /// # Errors
    /// As [`Self::vec`].
    pub fn f32_array(&self, name: &str, shape: &[usize]) -> Result<Array> {
        let dims = self.dims(name, shape)?;
        Ok(Array::from_slice(&self.vec::<f32>(name, shape)?, &dims))
    }

    fn typed<T: Element>(&self, name: &str, make: impl Fn(&[T], &[i32]) -> Array) -> Result<Array> {
        let stored = self.read::<T>(name)?;
        Ok(make(&stored.data, &self.dims(name, &stored.shape)?))
    }

    /// The shape in MLX's type, if MLX can count the elements.
    fn dims(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let dims: Option<Vec<i32>> = shape.iter().map(|&d| i32::try_from(d).ok()).collect();
        let countable = |d: &Vec<i32>| d.iter().try_fold(1i32, |n, &d| n.checked_mul(d)).is_some();
        dims.filter(countable)
            .ok_or_else(|| self.wrong(name, format!("shape {shape:?} is too large for one array")))
    }
}
