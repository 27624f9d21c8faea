//! Between slices and what stands for them in the ABI.
#![allow(unsafe_code, reason = "reads what the other side points to")]

use std::ffi::c_void;
use std::ptr;

use crate::abi::{self, Buf, Str, Tensor, TensorMut};
use crate::{Error, Result};

/// Bytes of an error that are looked at.
pub const MESSAGE_BYTES: usize = 1 << 16;

/// Characters of an error that are sent: six bytes each at the most, as JSON.
const MESSAGE_CHARACTERS: usize = 10_000;

/// A number that tensors may hold.
pub trait Element: Copy + 'static {
    /// [`Tensor::dtype`].
    const DTYPE: u32;
}

impl Element for f32 {
    const DTYPE: u32 = abi::F32;
}
impl Element for i8 {
    const DTYPE: u32 = abi::I8;
}
impl Element for u8 {
    const DTYPE: u32 = abi::U8;
}
impl Element for u32 {
    const DTYPE: u32 = abi::U32;
}

/// Axes, to be kept alive as long as the tensors that point to them.
#[derive(Debug, Clone)]
pub struct Shape {
    lengths: [i64; 2],
    axes: u32,
}

impl Shape {
    /// One axis.
    pub fn vector(length: usize) -> Self {
        Self { lengths: [length as i64, 1], axes: 1 }
    }

    /// Two axes.
    pub fn matrix(rows: usize, columns: usize) -> Self {
        Self { lengths: [rows as i64, columns as i64], axes: 2 }
    }

    /// Length of the second axis; 1 of a vector.
    pub(crate) fn columns(&self) -> usize {
        self.lengths[1] as usize
    }

    /// A tensor of this shape to read; valid while the shape and the values stay where they are.
    pub fn view<T: Element>(&self, values: &[T]) -> Tensor {
        Tensor {
            data: values.as_ptr().cast(),
            dtype: T::DTYPE,
            ndim: self.axes,
            shape: self.lengths.as_ptr(),
            strides: ptr::null(),
        }
    }

    /// A tensor of this shape to write; likewise.
    pub fn room<T: Element>(&self, values: &mut [T]) -> TensorMut {
        TensorMut {
            data: values.as_mut_ptr().cast(),
            dtype: T::DTYPE,
            ndim: self.axes,
            shape: self.lengths.as_ptr(),
            strides: ptr::null(),
        }
    }
}

/// A tensor that is absent.
pub fn nothing() -> Tensor {
    Tensor { data: ptr::null(), dtype: abi::F32, ndim: 0, shape: ptr::null(), strides: ptr::null() }
}

/// Elements of a tensor of this type that is there.
///
/// # Safety
/// `shape` points to `ndim` lengths.
unsafe fn length<T: Element>(
    data: *const c_void,
    dtype: u32,
    ndim: u32,
    shape: *const i64,
    strides: *const i64,
    what: &str,
) -> Result<usize> {
    let wrong = |reason: String| Err(Error::invalid(format!("{what}: {reason}")));
    if data.is_null() || shape.is_null() {
        return wrong("the tensor has no data".into());
    }
    if !data.cast::<T>().is_aligned() {
        return wrong("the tensor's data is not aligned".into());
    }
    if dtype != T::DTYPE {
        return wrong(format!("the tensor has dtype {dtype}, expected {}", T::DTYPE));
    }
    if !strides.is_null() {
        return wrong("the tensor has strides, expected row-major numbers without gaps".into());
    }
    if ndim > 8 {
        return wrong(format!("the tensor has {ndim} axes"));
    }
    // SAFETY: the caller's word.
    let shape = unsafe { std::slice::from_raw_parts(shape, ndim as usize) };
    let most = isize::MAX as usize / size_of::<T>();
    let count = shape.iter().try_fold(1_usize, |n, &axis| n.checked_mul(usize::try_from(axis).ok()?));
    match count.filter(|n| *n <= most) {
        Some(count) => Ok(count),
        None => wrong(format!("the tensor has the shape {shape:?}")),
    }
}

/// The numbers of a tensor.
///
/// # Safety
/// The tensor's pointers are null or what the ABI says they are, for as long as `'a`.
///
/// # Errors
/// [`Error::Invalid`] if it is absent or of another type.
pub unsafe fn values<'a, T: Element>(tensor: &Tensor, what: &str) -> Result<&'a [T]> {
    let Tensor { data, dtype, ndim, shape, strides } = *tensor;
    // SAFETY: the caller's word.
    unsafe {
        let length = length::<T>(data, dtype, ndim, shape, strides, what)?;
        Ok(std::slice::from_raw_parts(data.cast(), length))
    }
}

/// The room of a tensor.
///
/// # Safety
/// As of [`values`], and nobody else reads or writes it meanwhile.
///
/// # Errors
/// As of [`values`].
pub unsafe fn room<'a, T: Element>(tensor: &TensorMut, what: &str) -> Result<&'a mut [T]> {
    let TensorMut { data, dtype, ndim, shape, strides } = *tensor;
    // SAFETY: the caller's word.
    unsafe {
        let length = length::<T>(data.cast_const(), dtype, ndim, shape, strides, what)?;
        Ok(std::slice::from_raw_parts_mut(data.cast(), length))
    }
}

/// Borrowed text.
///
/// # Safety
/// The pointer is null or to `len` bytes, for as long as `'a`.
///
/// # Errors
/// [`Error::Invalid`] if it is no UTF-8.
pub unsafe fn text<'a>(text: Str, what: &str) -> Result<&'a str> {
    if text.len == 0 {
        return Ok("");
    }
    if text.ptr.is_null() {
        return Err(Error::invalid(format!("{what} is null")));
    }
    // SAFETY: the caller's word.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr, text.len) };
    std::str::from_utf8(bytes)
        .map_err(|e| Error::invalid(format!("{what} is no UTF-8 (at byte {})", e.valid_up_to())))
}

/// A structure that begins with its size.
///
/// # Safety
/// The pointer is null or to a structure of the ABI, whose first field tells its size.
///
/// # Errors
/// [`Error::Invalid`] if it is null, or smaller than in this version.
pub unsafe fn sized<'a, T>(pointer: *const T, what: &str) -> Result<&'a T> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{what} is null")));
    }
    // SAFETY: the caller's word.
    let size = unsafe { *pointer.cast::<u32>() } as usize;
    if size < size_of::<T>() {
        let expected = size_of::<T>();
        return Err(Error::invalid(format!("{what} has {size} bytes, expected {expected} or more")));
    }
    // SAFETY: the caller's word; it is as large as it should be.
    Ok(unsafe { &*pointer })
}

/// Bytes that the other side will release.
pub fn owned(bytes: Vec<u8>) -> Buf {
    unsafe extern "C" fn release(buf: *mut Buf) {
        // SAFETY: called once, with what `owned` made.
        unsafe {
            let buf = &mut *buf;
            let capacity = buf.private as usize;
            drop(Vec::from_raw_parts(buf.ptr, buf.len, capacity));
            *buf = Buf::empty();
        }
    }
    let mut bytes = std::mem::ManuallyDrop::new(bytes);
    Buf {
        ptr: bytes.as_mut_ptr(),
        len: bytes.len(),
        release: Some(release),
        private: ptr::without_provenance_mut(bytes.capacity()),
    }
}

/// A copy of the first `most` bytes of what the other side filled in, which is released.
///
/// # Safety
/// The buffer is empty or filled in as the ABI says, and is not used again.
pub unsafe fn taken(mut buf: Buf, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !buf.ptr.is_null() {
        // SAFETY: the caller's word.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(buf.ptr, buf.len.min(most)) });
    }
    if let Some(release) = buf.release {
        // SAFETY: the caller's word; it is called once.
        unsafe { release(&mut buf) };
    }
    bytes
}

/// Fills in an error: the document `{"error": text}`.
///
/// # Safety
/// The pointer is null or to an empty buffer.
pub unsafe fn explain(error: *mut Buf, text: &str) {
    if error.is_null() {
        return;
    }
    // What is cut here stays a document; what the reader cuts is not one any more.
    let short: String = text.chars().take(MESSAGE_CHARACTERS).collect();
    let document = serde_json::to_vec(&taq_policy::PolicyError::new(short)).unwrap_or_default();
    // SAFETY: the caller's word.
    unsafe { error.write(owned(document)) }
}

/// The text of an error: of the document `{"error": text}`, or as it stands.
pub fn message(bytes: &[u8]) -> String {
    match serde_json::from_slice::<taq_policy::PolicyError>(bytes) {
        Ok(document) => document.error,
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_what_they_say_or_refused() {
        let values = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let shape = Shape::matrix(2, 3);
        let tensor = shape.view(&values);
        // SAFETY: the tensor is of the values above.
        let read = |t: &Tensor| unsafe { super::values::<f32>(t, "x").map(<[f32]>::to_vec) };
        assert_eq!(read(&tensor).unwrap(), values);
        let message = |t: Tensor| read(&t).unwrap_err().to_string();
        assert_eq!(message(nothing()), "x: the tensor has no data");
        assert_eq!(message(Tensor { dtype: abi::I8, ..tensor }), "x: the tensor has dtype 2, expected 1");
        let strides = [1_i64, 2];
        assert!(message(Tensor { strides: strides.as_ptr(), ..tensor }).contains("strides"));
        for wrong in [[-1, 3], [i64::MAX, i64::MAX]] {
            assert!(message(Tensor { shape: wrong.as_ptr(), ..tensor }).contains("shape"), "{wrong:?}");
        }
        let off = Tensor { data: tensor.data.wrapping_byte_add(1), ..tensor };
        assert_eq!(message(off), "x: the tensor's data is not aligned");
    }

    #[test]
    fn bytes_go_over_once_and_long_ones_are_cut() {
        // SAFETY: each buffer is taken once.
        unsafe {
            assert_eq!(taken(owned(b"abc".to_vec()), 10), b"abc");
            assert_eq!(taken(owned(b"abc".to_vec()), 2), b"ab");
            assert_eq!(taken(owned(Vec::new()), 2), b"");
            assert_eq!(taken(Buf::empty(), 2), b"");
        }
    }

    #[test]
    fn errors_are_documents_or_plain_text() {
        let mut error = Buf::empty();
        // SAFETY: an empty buffer.
        unsafe { explain(&mut error, "a \"b\"") };
        // SAFETY: filled in above.
        let bytes = unsafe { taken(error, MESSAGE_BYTES) };
        assert_eq!(message(&bytes), "a \"b\"");
        let mut long = Buf::empty();
        // SAFETY: an empty buffer, and then one that is filled in.
        let bytes = unsafe {
            explain(&mut long, &"\u{1b}".repeat(10_000_000));
            taken(long, MESSAGE_BYTES)
        };
        assert_eq!(message(&bytes), "\u{1b}".repeat(MESSAGE_CHARACTERS));
        assert_eq!(message(b"plain"), "plain");
        assert_eq!(message(&[b'x', 0xff]), "x\u{fffd}");
    }
}
