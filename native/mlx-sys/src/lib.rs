//! Raw bindings to mlx-c 0.7.0, the C interface of Apple's MLX.
//!
//! This crate replaces the crates.io package of the same name and version through
//! `[patch.crates-io]`, so that mlx-rs 0.33 is used unmodified. Instead of compiling MLX it links
//! the library that Apple publishes for Python, and it compiles only mlx-c. `TAQ_MLX` selects the
//! library; `native/README.md` describes all variables.
//!
//! The declarations are bindgen's, at the crate root. Added to them are the half-precision types
//! and accessors that mlx-c leaves out on x86-64, the clock that mlx-rs seeds its random numbers
//! with, and [`build_info`].

mod bindings {
    #![allow(non_upper_case_globals, non_camel_case_types, non_snake_case, missing_docs)]
    #![allow(unsafe_op_in_unsafe_fn, clippy::all, clippy::undocumented_unsafe_blocks)]

    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

#[cfg(target_os = "linux")]
mod blas;
pub mod build_info;
#[cfg(not(target_vendor = "apple"))]
mod clock;
mod half_types;

pub use bindings::*;
#[cfg(target_os = "linux")]
pub use blas::cblas_sgemm;
pub use half_types::{
    bfloat16_t, float16_t, mlx_array_data_bfloat16, mlx_array_data_float16, mlx_array_item_bfloat16,
    mlx_array_item_float16,
};
