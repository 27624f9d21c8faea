//! Calls of core modules: what the host offers them, and how they answer.

use taq_policy::PolicyError;
use wasmtime::{Caller, Engine, Extern, Linker, Module, Store};

use super::call::{Reply, State, charge};
use super::explain::violation;
use super::limits::RESPONSE_BYTES;
use super::text::{document, shown};

/// Instantiates a module and calls one of its functions.
pub(super) fn reply(module: &Module, store: &mut Store<State>) -> wasmtime::Result<Reply> {
    let instance = linker(module.engine())?.instantiate(&mut *store, module)?;
    let request = store.data().request.as_ref().map(|request| request.len());
    let code = match request {
        None => instance.get_typed_func::<(), i32>(&mut *store, "describe")?.call(&mut *store, ())?,
        Some(length) => {
            let length = i32::try_from(length).map_err(|_| violation("the request is too large"))?;
            instance.get_typed_func::<i32, i32>(&mut *store, "assign")?.call(&mut *store, length)?
        }
    };
    let response =
        store.data_mut().response.take().ok_or_else(|| violation("it returned without a response"))?;
    match (request, code) {
        (_, 0) => Ok(Reply::Document(response)),
        (Some(_), 1) => {
            let PolicyError { error } = document(&response, "error").map_err(violation)?;
            Ok(Reply::Refusal(shown(error.as_bytes())))
        }
        (None, code) => Err(violation(format!("`describe` returned {code}; expected 0"))),
        (Some(_), code) => {
            Err(violation(format!("`assign` returned {code}; expected 0 (a plan) or 1 (an error)")))
        }
    }
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    linker.func_wrap("taq", "read_request", |mut caller: Caller<'_, State>, to: i32| {
        let request = caller.data().request.clone().unwrap_or_default();
        charge(&mut caller, request.len())?;
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
        charge(&mut caller, length)?;
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
        charge(&mut caller, 0)?;
        let (memory, state) = memory(&mut caller)?;
        let text = slice(memory.len(), from, length as u32 as usize).ok_or_else(|| {
            violation(format!(
                "its log line of {} bytes at {} lies outside its memory",
                length as u32, from as u32
            ))
        })?;
        if state.takes_line() {
            state.log(level as u32, &memory[text]);
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
