//! One source, compiled for several instruction sets and chosen at run time.
//!
//! Loops are written as plain Rust that LLVM vectorises. [`dispatch!`] compiles a body once per
//! instruction set; `FMA` tells it whether `mul_add` is one instruction (elsewhere it would be a
//! slow library call).

pub(crate) mod math;
pub(crate) mod product;
pub(crate) mod rows;

/// Instruction sets that bodies are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    /// What the target always has.
    #[allow(dead_code)] // not built on aarch64
    Portable,
    /// FMA and vectors of 128 bits (aarch64) or 256 bits (x86-64).
    #[allow(dead_code)] // not built on other targets
    Fma,
    /// AVX-512.
    #[allow(dead_code)] // built on x86-64 only
    Avx512,
}

/// The best level of this machine.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        if !(has!("avx2") && has!("fma")) {
            return Level::Portable;
        }
        if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            return Level::Avx512;
        }
        Level::Fma
    }
    #[cfg(target_arch = "aarch64")]
    {
        Level::Fma
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Level::Portable
    }
}

/// Defines a function that calls `body::<FMA, ..>` compiled for this machine's instruction set.
/// `body` must be `#[inline(always)]`, as must what it calls.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? (
        $($arg:ident: $ty:ty),* $(,)?
    ) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn fma $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<true $(, $generic)?>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
                fn avx512 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<true $(, $generic)?>($($arg),*)
                }
                match $crate::simd::level() {
                    $crate::simd::Level::Portable => $body::<false $(, $generic)?>($($arg),*),
                    // SAFETY: `level` has found the features.
                    $crate::simd::Level::Fma => unsafe { fma $(::<$generic>)? ($($arg),*) },
                    // SAFETY: `level` has found the features.
                    $crate::simd::Level::Avx512 => unsafe { avx512 $(::<$generic>)? ($($arg),*) },
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                $body::<true $(, $generic)?>($($arg),*)
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            {
                $body::<false $(, $generic)?>($($arg),*)
            }
        }
    };
}
pub(crate) use dispatch;
