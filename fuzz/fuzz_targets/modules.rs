//! Any bytes as a policy, and modules that are made to pass the gate: they are refused, stopped, or they answer. The
//! same module ends the same way twice.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use taq_core::wasm::probe;
use taq_core::{LayerSpec, PolicyRequest, Role, Stream, Timestep};

/// Enough for every loop to be entered, little enough for thousands of modules.
const FUEL: u64 = 200_000;

fuzz_target!(|data: &[u8]| {
    let first = probe(data, request(), FUEL);
    if data.starts_with(b"\0asm") {
        assert_eq!(first, probe(data, request(), FUEL));
        return;
    }
    let mut choices = Unstructured::new(data);
    if let Ok(module) = wasm_smith::Module::new(config(), &mut choices) {
        let bytes = module.to_bytes();
        let first = probe(&bytes, request(), FUEL);
        assert_eq!(first, probe(&bytes, request(), FUEL));
        for error in [first.0.err(), first.1.err()].into_iter().flatten() {
            assert!(!error.contains("the compiler failed"), "{error}");
        }
    }
});

fn request() -> &'static PolicyRequest {
    static REQUEST: OnceLock<PolicyRequest> = OnceLock::new();
    REQUEST.get_or_init(|| {
        let layer = LayerSpec {
            id: "a".into(),
            block: "b".into(),
            stream: Stream::Text,
            role: Role::K,
            in_features: 4,
            out_features: 4,
            post_gelu: false,
        };
        PolicyRequest::new("fuzz", vec![layer], vec![Timestep { step: 0, sigma: 1.0 }])
    })
}

/// The imports and exports of the ABI, and what WebAssembly the host takes.
fn config() -> wasm_smith::Config {
    let text = |text: &str| wat::parse_str(text).expect("it is valid");
    wasm_smith::Config {
        available_imports: Some(text(
            r#"(module
                (import "taq" "read_request" (func (param i32)))
                (import "taq" "write_response" (func (param i32 i32)))
                (import "taq" "log" (func (param i32 i32 i32))))"#,
        )),
        exports: Some(text(
            r#"(module (memory (export "memory") 1)
                (func (export "taq_policy_abi_v1"))
                (func (export "describe") (result i32) (i32.const 0))
                (func (export "assign") (param i32) (result i32) (i32.const 0)))"#,
        )),
        allow_start_export: true,
        max_imports: 3,
        max_memories: 1,
        max_memory32_bytes: 1 << 20,
        min_funcs: 3,
        max_funcs: 12,
        gc_enabled: false,
        exceptions_enabled: false,
        memory64_enabled: false,
        threads_enabled: false,
        relaxed_simd_enabled: false,
        shared_everything_threads_enabled: false,
        custom_page_sizes_enabled: false,
        wide_arithmetic_enabled: false,
        ..wasm_smith::Config::default()
    }
}
