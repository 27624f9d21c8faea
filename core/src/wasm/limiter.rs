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
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let total = (self.memory - current).saturating_add(desired);
        if total > MEMORY_BYTES {
            return Err(violation(format!(
                "it asked for {} MiB of memory; at most {} MiB are given",
                total.div_ceil(1 << 20),
                MEMORY_BYTES >> 20
            )));
        }
        self.memory = total;
        Ok(true)
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
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let total = (self.elements - current).saturating_add(desired);
        if total > TABLE_ELEMENTS {
            return Err(violation(format!(
                "it asked for a table of {total} elements; at most {TABLE_ELEMENTS} are given"
            )));
        }
        self.elements = total;
        Ok(true)
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
