//! Half-precision types and accessors, the same on every target.
//!
//! mlx-c declares them only where the C compiler has such types. The shapes here are the ones that
//! mlx-rs expects: bits in a public field for binary16, plain bits for bfloat16.

use std::ffi::c_int;

use half::{bf16, f16};

use crate::bindings::{mlx_array, mlx_array_data_uint16, mlx_array_item_float32};

/// The bits of an IEEE binary16 number.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub struct float16_t(pub u16);

/// The bits of a bfloat16 number.
#[allow(non_camel_case_types)]
pub type bfloat16_t = u16;

/// Reads a one-element float16 array; returns 0 on success.
///
/// # Safety
///
/// `res` must be valid for writing and `arr` a live array.
pub unsafe fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> c_int {
    let mut wide = 0.0f32;
    // SAFETY: `wide` is valid for writing and the caller vouches for `arr`.
    let status = unsafe { mlx_array_item_float32(&mut wide, arr) };
    if status == 0 {
        // SAFETY: the caller vouches for `res`.
        unsafe { res.write(float16_t(f16::from_f32(wide).to_bits())) };
    }
    status
}

/// Reads a one-element bfloat16 array; returns 0 on success.
///
/// # Safety
///
/// `res` must be valid for writing and `arr` a live array.
pub unsafe fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> c_int {
    let mut wide = 0.0f32;
    // SAFETY: `wide` is valid for writing and the caller vouches for `arr`.
    let status = unsafe { mlx_array_item_float32(&mut wide, arr) };
    if status == 0 {
        // SAFETY: the caller vouches for `res`.
        unsafe { res.write(bf16::from_f32(wide).to_bits()) };
    }
    status
}

/// The data of an evaluated float16 array.
///
/// # Safety
///
/// `arr` must be a live, evaluated array of 16-bit elements.
pub unsafe fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t {
    // SAFETY: the caller vouches for `arr`; both types are 16 bits wide.
    unsafe { mlx_array_data_uint16(arr) }.cast()
}

/// The data of an evaluated bfloat16 array.
///
/// # Safety
///
/// `arr` must be a live, evaluated array of 16-bit elements.
pub unsafe fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t {
    // SAFETY: the caller vouches for `arr`; both types are 16 bits wide.
    unsafe { mlx_array_data_uint16(arr) }
}
