//! Whether what a library points to is memory at all.

use std::ffi::c_void;

/// Nothing is mapped below: null, and the small numbers that dangling pointers are made of.
const LOWEST: usize = 4096;

/// Whether `len` bytes from here are mapped. What is mapped may still be something else; this only tells pointers that were
/// never set or are long gone.
pub(super) fn is_mapped(pointer: *const c_void, len: usize) -> bool {
    let start = pointer.addr();
    let Some(end) = start.checked_add(len) else { return false };
    start >= LOWEST && end <= isize::MAX as usize && pages_are_mapped(start, end)
}

#[cfg(unix)]
fn pages_are_mapped(start: usize, end: usize) -> bool {
    // SAFETY: asks for a number.
    let page = match unsafe { libc::sysconf(libc::_SC_PAGESIZE) } {
        size @ 1.. => size as usize,
        _ => return true,
    };
    let first = start / page * page;
    // SAFETY: writes nothing: with MS_ASYNC, `msync` only looks whether the pages are there (ENOMEM if not).
    unsafe { libc::msync(std::ptr::without_provenance_mut(first), end - first, libc::MS_ASYNC) == 0 }
}

#[cfg(not(unix))]
fn pages_are_mapped(_: usize, _: usize) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::is_mapped;

    #[test]
    fn only_memory_is_mapped() {
        let here = [1_u8; 64];
        assert!(is_mapped(here.as_ptr().cast(), 64));
        static THERE: [u8; 10_000] = [7; 10_000];
        assert!(is_mapped(THERE.as_ptr().cast(), THERE.len()));
        for nowhere in [0, 1, 8, 4095, usize::MAX - 7] {
            assert!(!is_mapped(std::ptr::without_provenance(nowhere), 8), "{nowhere:#x}");
        }
        #[cfg(unix)]
        for nowhere in [0xdead_beef_0000_usize, 0x10_0000] {
            assert!(!is_mapped(std::ptr::without_provenance(nowhere), 8), "{nowhere:#x}");
        }
        assert!(!is_mapped(here.as_ptr().cast(), usize::MAX));
    }
}
