//! Keeps the BLAS forwarder among the libraries that a program loads.

use std::ffi::c_int;

unsafe extern "C" {
    /// Single-precision matrix product `c = alpha * a * b + beta * c` of the C BLAS interface,
    /// by OpenBLAS. The order and transposition codes are those of the CBLAS standard.
    pub fn cblas_sgemm(
        order: c_int,
        trans_a: c_int,
        trans_b: c_int,
        m: c_int,
        n: c_int,
        k: c_int,
        alpha: f32,
        a: *const f32,
        lda: c_int,
        b: *const f32,
        ldb: c_int,
        beta: f32,
        c: *mut f32,
        ldc: c_int,
    );
}

type Sgemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    f32,
    *const f32,
    c_int,
    *const f32,
    c_int,
    f32,
    *mut f32,
    c_int,
);

// Linkers drop a library from which nothing is used. libmlx's own imports do not count.
#[used]
static KEEP: Sgemm = cblas_sgemm;
