//! From bytes to a compiled module.

use std::path::Path;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use wasmparser::WasmFeatures;
use wasmtime::component::Component;
use wasmtime::{Config, Engine, Module};

use super::call::Guest;
use super::gate::{Format, ModuleFacts};
use super::limits::{COMPILE_SECONDS, COMPONENT_COMPILE_SECONDS, STACK_BYTES};
use super::text::shown;
use super::{cache, component, gate};

/// The engine of this process. Its settings make what a module computes independent of the machine.
pub(super) fn engine() -> Result<&'static Engine, String> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    let made = ENGINE.get_or_init(|| {
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .cranelift_nan_canonicalization(true)
            // Typed references of functions, which have no method without wasmtime's feature `gc`.
            .wasm_features(WasmFeatures::FUNCTION_REFERENCES | WasmFeatures::GC, false)
            .wasm_relaxed_simd(false)
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .max_wasm_stack(STACK_BYTES);
        Engine::new(&config).map_err(|e| format!("the WASM engine does not start: {e}"))
    });
    made.as_ref().map_err(Clone::clone)
}

/// A module or component that passed the gate, from the cache's folder or compiled.
pub(super) fn compile(bytes: &[u8], cache: Option<&Path>) -> Result<(Guest, ModuleFacts), String> {
    let facts = gate::check(bytes)?;
    let engine = engine()?;
    let format = Format::of(bytes)?;
    let kept = cache.and_then(|folder| cache::load(folder, engine, bytes, format));
    let guest = match kept {
        Some(guest) => guest,
        None => {
            let guest = in_time(engine, bytes.to_vec(), format)?;
            if let Some(folder) = cache
                && let Err(error) = cache::store(folder, engine, bytes, &guest)
            {
                tracing::debug!("compiled policy not kept in {}: {error}", folder.display());
            }
            guest
        }
    };
    if let Guest::Component(component) = &guest {
        component::check(component)?;
    }
    Ok((guest, facts))
}

/// Compiles on another thread, which is left behind if it takes too long: nothing can stop a compiler.
fn in_time(engine: &'static Engine, bytes: Vec<u8>, format: Format) -> Result<Guest, String> {
    let seconds = match format {
        Format::Module => COMPILE_SECONDS,
        Format::Component => COMPONENT_COMPILE_SECONDS,
    };
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        let guest = match format {
            Format::Module => Module::new(engine, bytes).map(Guest::Module),
            Format::Component => Component::new(engine, bytes).map(Guest::Component),
        };
        // Nobody listens any more if it took too long.
        let _ = done.send(guest);
    });
    match result.recv_timeout(Duration::from_secs(seconds)) {
        Ok(guest) => guest.map_err(|e| format!("it is not valid: {}", shown(format!("{e:#}").as_bytes()))),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(format!("it was not compiled within {seconds} s: its functions are too complex"))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("the compiler failed on it".into()),
    }
}
