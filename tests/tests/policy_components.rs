//! taq's own policies as components: an adapter turns any module of ABI version 1 into one. They decide the same,
//! byte for byte.

use std::fs;

use serde_json::json;
use taq_core::registry::Registry;
use taq_core::testing::sd3_request;
use taq_core::wasm::WasmPolicy;
use taq_plugins as _;
use taq_tests::paths::repository;

/// A component around a module. Its memory is the module's own; the request is laid behind what the module has.
///
/// The module needs the host's functions to be instantiated, and they need its memory: they are called through a
/// table, which is filled last.
fn component(module: &[u8]) -> Vec<u8> {
    let module = wasmprinter::print_bytes(module).unwrap();
    let module = module.strip_prefix("(module").unwrap();
    let text = format!(
        r#"(component
        (import "taq:policy/log@1.0.0" (instance $log
            (export "write" (func (param "level" u8) (param "line" string)))))
        (core module $calls
            (type $one (func (param i32))) (type $two (func (param i32 i32))) (type $three (func (param i32 i32 i32)))
            (table (export "table") 3 3 funcref)
            (func (export "read_request") (param i32)
                (call_indirect (type $one) (local.get 0) (i32.const 0)))
            (func (export "write_response") (param i32 i32)
                (call_indirect (type $two) (local.get 0) (local.get 1) (i32.const 1)))
            (func (export "log") (param i32 i32 i32)
                (call_indirect (type $three) (local.get 0) (local.get 1) (local.get 2) (i32.const 2))))
        (core instance $calls (instantiate $calls))
        (core module $policy {module}
        (core instance $policy (instantiate $policy (with "taq" (instance
            (export "read_request" (func $calls "read_request"))
            (export "write_response" (func $calls "write_response"))
            (export "log" (func $calls "log"))))))
        (alias core export $policy "memory" (core memory $memory))
        (core func $write (canon lower (func $log "write") (memory $memory)))
        (core module $adapter
            (import "policy" "memory" (memory 1))
            (import "policy" "describe" (func $describe (result i32)))
            (import "policy" "assign" (func $assign (param i32) (result i32)))
            (import "log" "write" (func $log (param i32 i32 i32)))
            (import "calls" "table" (table 3 funcref))
            (elem (i32.const 0) func $read_request $write_response $log)
            (global $request (mut i32) (i32.const 0)) (global $length (mut i32) (i32.const 0))
            (global $from (mut i32) (i32.const 0)) (global $bytes (mut i32) (i32.const 0))
            (func $read_request (param $to i32)
                (memory.copy (local.get $to) (global.get $request) (global.get $length)))
            (func $write_response (param i32 i32)
                (global.set $from (local.get 0)) (global.set $bytes (local.get 1)))
            ;; New pages, never given back: an instance answers once.
            (func $pages (param $bytes i32) (result i32)
                (i32.mul (i32.const 65536) (memory.grow (i32.add (i32.const 1)
                    (i32.div_u (local.get $bytes) (i32.const 65536))))))
            (func (export "realloc") (param i32 i32 i32) (param $new i32) (result i32)
                (call $pages (local.get $new)))
            (func (export "describe") (result i32) (local $at i32)
                (drop (call $describe))
                (local.set $at (call $pages (i32.const 8)))
                (i32.store (local.get $at) (global.get $from))
                (i32.store offset=4 (local.get $at) (global.get $bytes))
                (local.get $at))
            (func (export "assign") (param $request i32) (param $length i32) (result i32) (local $at i32)
                (global.set $request (local.get $request))
                (global.set $length (local.get $length))
                (local.set $at (call $pages (i32.const 12)))
                (i32.store (local.get $at) (call $assign (local.get $length)))
                (i32.store offset=4 (local.get $at) (global.get $from))
                (i32.store offset=8 (local.get $at) (global.get $bytes))
                (local.get $at)))
        (core instance $adapter (instantiate $adapter
            (with "policy" (instance $policy))
            (with "log" (instance (export "write" (func $write))))
            (with "calls" (instance $calls))))
        (func $describe (result string) (canon lift (core func $adapter "describe") (memory $memory)))
        (func $assign (param "request" string) (result (result string (error string)))
            (canon lift (core func $adapter "assign") (memory $memory) (realloc (func $adapter "realloc"))))
        (instance $exports (export "describe" (func $describe)) (export "assign" (func $assign)))
        (export "taq:policy/bit-policy@1.0.0" (instance $exports)))"#
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn components_decide_as_built_ins_and_modules_do() {
    let request = sd3_request(24, 1536, 50);
    let plugins = Registry::linked().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["multitier", "budget"] {
        let module = repository().join(format!("policies/{name}/{name}.wasm"));
        let path = folder.path().join(format!("{name}.wasm"));
        fs::write(&path, component(&fs::read(&module).unwrap())).unwrap();
        let policy = WasmPolicy::load(&path, &json!({})).unwrap();
        assert!(policy.facts().component);
        assert_eq!(policy.info().name, name);
        let run = policy.run(&request).unwrap();
        let native = plugins.policy(name, &json!({})).unwrap().assign(&request).unwrap();
        assert!(
            run.response == serde_json::to_vec(&native).unwrap(),
            "{name} decides otherwise as a component"
        );
        assert_eq!(run, policy.run(&request).unwrap(), "{name}: another plan or other fuel the second time");
        let module = WasmPolicy::load(&module, &json!({})).unwrap().run(&request).unwrap();
        assert_eq!(run.plan, module.plan);
        assert!(run.memory < 64 << 20, "{name}: {} bytes of memory", run.memory);
    }
}
