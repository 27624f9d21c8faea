//! Memory and tables that a call may take.

use wasmtime::ResourceLimiter;

use super::explain::violation;
use super::limits::{INSTANCES, MEMORIES, MEMORY_BYTES, TABLE_ELEMENTS, TABLES};

/// Refuses to grow, with a reason: a guest that is told “no” would only stop at an `unreachable`. It is told so at
/// the maximum that it has set itself. All memories of one call count together, and so do all tables.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// Bytes of all memories.
    pub memory: usize,
    elements: usize,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        grow(&mut self.memory, [current, desired], maximum, MEMORY_BYTES, |total| {
            let (asked, most) = (total.div_ceil(1 << 20), MEMORY_BYTES >> 20);
            format!("it asked for {asked} MiB of memory; at most {most} MiB are given")
        })
    }

    /// The host has no more memory to give. The guest would be told “no”, and might answer something else than on
    /// another machine.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        grow(&mut self.elements, [current, desired], maximum, TABLE_ELEMENTS, |total| {
            format!("it asked for a table of {total} elements; at most {TABLE_ELEMENTS} are given")
        })
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }

    fn tables(&self) -> usize {
        TABLES
    }
}

/// Whether one of several may grow, within the maximum of its own and with `most` of all; `total` is how much they have.
fn grow(
    total: &mut usize,
    [current, desired]: [usize; 2],
    maximum: Option<usize>,
    most: usize,
    explain: impl FnOnce(usize) -> String,
) -> wasmtime::Result<bool> {
    if maximum.is_some_and(|maximum| desired > maximum) {
        return Ok(false);
    }
    let wanted = (*total - current).saturating_add(desired);
    if wanted > most {
        return Err(violation(explain(wanted)));
    }
    *total = wanted;
    Ok(true)
}
