//! The Mach clock that mlx-rs seeds its random numbers with, for other systems.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970, modulo 2^64.
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    elapsed.as_secs().wrapping_mul(1_000_000_000).wrapping_add(u64::from(elapsed.subsec_nanos()))
}
