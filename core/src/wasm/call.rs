//! One call of one function of a module, in a store of its own.

use std::sync::Arc;

use wasmtime::{Caller, Extern, Linker, Module, ResourceLimiter, Store, Trap};

use super::limits::{LOG_LINES, MEMORY_BYTES, RESPONSE_BYTES, STACK_BYTES, TABLE_ELEMENTS};
use super::text::shown;

/// What a call left behind.
#[derive(Debug)]
pub(super) struct Answer {
    /// What the function returned.
    pub code: i32,
    /// The response.
    pub response: Vec<u8>,
    /// Fuel that was used up.
    pub fuel: u64,
    /// Bytes of linear memory at the end.
    pub memory: usize,
}

/// What the host's functions work on.
struct State {
    /// For the log.
    name: Arc<str>,
    request: Arc<[u8]>,
    response: Option<Vec<u8>>,
    lines: usize,
    limits: Limits,
}

/// A rule of the ABI, or a limit, that the module broke.
#[derive(Debug)]
struct Violation(String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

fn violation(text: impl Into<String>) -> wasmtime::Error {
    wasmtime::Error::new(Violation(text.into()))
}

/// Calls `describe` (without a request) or `assign`. The error is a sentence for the user.
pub(super) fn call(
    module: &Module,
    name: &str,
    request: Option<Arc<[u8]>>,
    fuel: u64,
) -> Result<Answer, String> {
    let engine = module.engine();
    let state = State {
        name: name.into(),
        request: request.clone().unwrap_or_default(),
        response: None,
        lines: 0,
        limits: Limits,
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limits);
    let outcome = (|| {
        // Before instantiation: a start function runs there, and may be endless.
        store.set_fuel(fuel)?;
        let instance = linker(engine)?.instantiate(&mut store, module)?;
        let code = match &request {
            None => instance.get_typed_func::<(), i32>(&mut store, "describe")?.call(&mut store, ())?,
            Some(request) => {
                let length =
                    i32::try_from(request.len()).map_err(|_| violation("the request is too large"))?;
                instance.get_typed_func::<i32, i32>(&mut store, "assign")?.call(&mut store, length)?
            }
        };
        let memory = instance.get_memory(&mut store, "memory").map_or(0, |m| m.data_size(&store));
        Ok((code, memory))
    })();
    let used = fuel - store.get_fuel().unwrap_or(0);
    let (code, memory) = outcome.map_err(|error: wasmtime::Error| explain(&error, fuel))?;
    let response = store.into_data().response.ok_or("it returned without a response")?;
    Ok(Answer { code, response, fuel: used, memory })
}

fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    linker.func_wrap("taq", "read_request", |mut caller: Caller<'_, State>, to: i32| {
        let request = Arc::clone(&caller.data().request);
        let (memory, _) = memory(&mut caller)?;
        let room = slice(memory.len(), to, request.len()).ok_or_else(|| {
            violation(format!(
                "it wants the request of {} bytes at {}, outside its memory",
                request.len(),
                to as u32
            ))
        })?;
        memory[room].copy_from_slice(&request);
        Ok(())
    })?;
    linker.func_wrap("taq", "write_response", |mut caller: Caller<'_, State>, from: i32, length: i32| {
        let length = length as u32 as usize;
        if length > RESPONSE_BYTES {
            return Err(violation(format!(
                "its response has {length} bytes; at most {RESPONSE_BYTES} are taken"
            )));
        }
        let (memory, state) = memory(&mut caller)?;
        if state.response.is_some() {
            return Err(violation("it wrote two responses to one call"));
        }
        let text = slice(memory.len(), from, length).ok_or_else(|| {
            violation(format!("its response of {length} bytes at {} lies outside its memory", from as u32))
        })?;
        state.response = Some(memory[text].to_vec());
        Ok(())
    })?;
    linker.func_wrap("taq", "log", |mut caller: Caller<'_, State>, level: i32, from: i32, length: i32| {
        let (memory, state) = memory(&mut caller)?;
        let text = slice(memory.len(), from, length as u32 as usize).ok_or_else(|| {
            violation(format!(
                "its log line of {} bytes at {} lies outside its memory",
                length as u32, from as u32
            ))
        })?;
        state.lines += 1;
        if state.lines <= LOG_LINES {
            let text = shown(&memory[text]);
            match level {
                1 => tracing::error!("policy {}: {text}", state.name),
                2 => tracing::warn!("policy {}: {text}", state.name),
                3 => tracing::info!("policy {}: {text}", state.name),
                _ => tracing::debug!("policy {}: {text}", state.name),
            }
        }
        Ok(())
    })?;
    Ok(linker)
}

/// The guest's memory and the state beside it.
fn memory<'a>(caller: &'a mut Caller<'_, State>) -> wasmtime::Result<(&'a mut [u8], &'a mut State)> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(violation("it has no memory"));
    };
    Ok(memory.data_and_store_mut(caller))
}

/// The range of `length` bytes at an address of the guest, if it lies within its memory.
fn slice(memory: usize, address: i32, length: usize) -> Option<std::ops::Range<usize>> {
    let start = address as u32 as usize;
    let end = start.checked_add(length)?;
    (end <= memory).then_some(start..end)
}

/// Refuses to grow, with a reason: a guest that is told “no” would only stop at an `unreachable`.
struct Limits;

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > MEMORY_BYTES {
            return Err(violation(format!(
                "it asked for {} MiB of memory; at most {} MiB are given",
                desired.div_ceil(1 << 20),
                MEMORY_BYTES >> 20
            )));
        }
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS {
            return Err(violation(format!(
                "it asked for a table of {desired} elements; at most {TABLE_ELEMENTS} are given"
            )));
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        8
    }
}

/// Why a call ended early.
fn explain(error: &wasmtime::Error, fuel: u64) -> String {
    if let Some(Violation(text)) = error.downcast_ref() {
        return text.clone();
    }
    match error.downcast_ref() {
        Some(Trap::OutOfFuel) => {
            format!("it did not end within {} million instructions (an endless loop?)", fuel / 1_000_000)
        }
        Some(Trap::StackOverflow) => {
            format!("it ran out of its {} KiB of stack (an endless recursion?)", STACK_BYTES >> 10)
        }
        Some(Trap::UnreachableCodeReached) => "it gave up (`unreachable`: a panic or an abort)".into(),
        Some(Trap::MemoryOutOfBounds) => "it reached outside its memory".into(),
        Some(trap) => format!("it was stopped: {trap}"),
        None => format!("it cannot be run: {}", shown(format!("{error:#}").as_bytes())),
    }
}
