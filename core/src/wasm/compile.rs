//! From bytes to a compiled module.

use std::path::Path;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use wasmtime::{Config, Engine, Module};

use super::gate::ModuleFacts;
use super::limits::{COMPILE_SECONDS, STACK_BYTES};
use super::text::shown;
use super::{cache, gate};

/// The engine of this process. Its settings make what a module computes independent of the machine.
pub(super) fn engine() -> Result<&'static Engine, String> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    let made = ENGINE.get_or_init(|| {
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(false)
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .max_wasm_stack(STACK_BYTES);
        Engine::new(&config).map_err(|e| format!("the WASM engine does not start: {e}"))
    });
    made.as_ref().map_err(Clone::clone)
}

/// A module that passed the gate, from the cache's folder or compiled.
pub(super) fn compile(bytes: &[u8], cache: Option<&Path>) -> Result<(Module, ModuleFacts), String> {
    let facts = gate::check(bytes)?;
    let engine = engine()?;
    if let Some(module) = cache.and_then(|folder| cache::load(folder, engine, bytes)) {
        return Ok((module, facts));
    }
    let module = in_time(engine, bytes.to_vec())?;
    if let Some(folder) = cache
        && let Err(error) = cache::store(folder, engine, bytes, &module)
    {
        tracing::debug!("compiled policy not kept in {}: {error}", folder.display());
    }
    Ok((module, facts))
}

/// Compiles on another thread, which is left behind if it takes too long: nothing can stop a compiler.
fn in_time(engine: &'static Engine, bytes: Vec<u8>) -> Result<Module, String> {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = done.send(Module::new(engine, bytes));
    });
    match result.recv_timeout(Duration::from_secs(COMPILE_SECONDS)) {
        Ok(module) => module.map_err(|e| format!("it is not valid: {}", shown(format!("{e:#}").as_bytes()))),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(format!("it was not compiled within {COMPILE_SECONDS} s: its functions are too complex"))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("the compiler failed on it".into()),
    }
}
