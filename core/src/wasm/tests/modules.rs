//! Core modules that mean harm, and those that are merely wrong: each with the sentence that the user reads.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{INFO, Lines, PLAN, Toy, WRITE, request, run_bytes, text_fails};
use crate::wasm::WasmPolicy;
use crate::wasm::limits::LOG_LINES;

#[test]
fn a_policy_answers_with_its_plan_and_the_same_fuel_every_time() {
    let first = Toy::default().run().unwrap();
    assert_eq!(first.plan.layers[0].activation_bits, [8, 8]);
    assert_eq!(first.response, PLAN.as_bytes());
    assert!(first.fuel > 0 && first.fuel < 1000, "{}", first.fuel);
    assert_eq!(first.memory, 2 * 65536);
    assert_eq!(Toy::default().run().unwrap(), first);
}

#[test]
fn a_policy_reads_its_request_and_its_settings() {
    // Answers with an error that is the request itself, cut to a JSON string by its own quotes.
    let error = br#"{"error":"settings: no"}"#;
    let toy = Toy {
        plan: error,
        assign: "(call $read (i32.const 8192)) (call $write (i32.const 4096) (global.get $plan))
                 (i32.ne (i32.load8_u (i32.const 8192)) (i32.const 0x7b)) if (result i32) i32.const 7 else i32.const 1 end",
        ..Toy::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.wasm");
    fs::write(&path, wat::parse_str(toy.text()).unwrap()).unwrap();
    let error = WasmPolicy::load_with(&path, &json!({ "x": 1 }), None).err().unwrap().to_string();
    assert_eq!(error, format!("policy `{}`: settings: no", path.display()));
    let error = WasmPolicy::load_with(&path, &json!([1]), None).err().unwrap().to_string();
    assert!(error.contains("expected a table of settings, found [1]"), "{error}");
    assert!(WasmPolicy::load(&folder.path().join("gone.wasm"), &json!({})).is_err());
}

#[test]
fn opening_a_policy_does_not_run_assign() {
    let lines = "(call $log (i32.const 3) (i32.const 0) (i32.const 20))";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.wasm");
    let assign = format!("{lines} {WRITE}");
    fs::write(&path, wat::parse_str(Toy { assign: &assign, ..Toy::default() }.text()).unwrap()).unwrap();
    let lines = |work: &dyn Fn() -> WasmPolicy| {
        let counted = Lines::default();
        tracing::subscriber::with_default(counted.clone(), || assert_eq!(work().info().name, "toy"));
        counted.0.load(Ordering::Relaxed)
    };
    assert_eq!(lines(&|| WasmPolicy::open_with(&path, None).unwrap()), 0);
    assert_eq!(lines(&|| WasmPolicy::load_with(&path, &Value::Null, None).unwrap()), 1);
}

#[test]
fn an_error_of_the_policy_is_shown_harmless() {
    let plan = format!(r#"{{"error":"no \u001b[31m{}"}}"#, "x".repeat(1000));
    let error = Toy {
        plan: plan.as_bytes(),
        assign: &WRITE.replace("(i32.const 0)", "(i32.const 1)"),
        ..Toy::default()
    }
    .run()
    .unwrap_err();
    assert!(error.starts_with("it has no plan: no \\u{1b}[31mxxx") && error.ends_with("x…"), "{error}");
    assert!(error.chars().count() < 600);
}

#[test]
fn what_takes_too_much_is_stopped() {
    let loops = "it did not end within 5000 million instructions (an endless loop?)";
    let start = Instant::now();
    Toy { assign: "(loop (br 0)) (i32.const 0)", ..Toy::default() }.fails(loops);
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
    Toy { fields: "(func $spin (loop (br 0))) (start $spin)", ..Toy::default() }
        .fails("it did not end within 200 million instructions (an endless loop?)");
    Toy { assign: "(loop (drop (memory.grow (i32.const 64))) (br 0)) (i32.const 0)", ..Toy::default() }
        .fails("it asked for 65 MiB of memory; at most 64 MiB are given");
    Toy { memory: "(memory (export \"memory\") 65536)", ..Toy::default() }
        .fails("it begins with 65536 pages of memory; at most 1024 (64 MiB) are given");
    Toy { fields: "(table 10000000 funcref)", ..Toy::default() }
        .fails("it begins with a table of 10000000 elements; at most 100000 are given");
    Toy {
        fields: "(table $t 1 funcref)",
        assign: "(loop (drop (table.grow $t (ref.null func) (i32.const 65536))) (br 0)) (i32.const 0)",
        ..Toy::default()
    }
    .fails("it asked for a table of 131073 elements; at most 100000 are given");
    Toy { assign: "(call $assign (local.get $length))", ..Toy::default() }
        .fails("it ran out of its 512 KiB of stack (an endless recursion?)");
    Toy {
        memory: "(memory (export \"memory\") 1024)",
        assign: "(call $write (i32.const 0) (i32.const 67108864)) (i32.const 0)",
        ..Toy::default()
    }
    .fails("its response has 67108864 bytes; at most 8388608 are taken");
    Toy { assign: "(call $write (i32.const 0) (i32.const -1)) (i32.const 0)", ..Toy::default() }
        .fails("its response has 4294967295 bytes; at most 8388608 are taken");
}

#[test]
fn what_breaks_the_rules_is_named() {
    Toy { assign: "unreachable", ..Toy::default() }.fails("it gave up (`unreachable`: a panic or an abort)");
    Toy { assign: "(i32.load (i32.const -4))", ..Toy::default() }.fails("it reached outside its memory");
    Toy { assign: "(i32.div_u (i32.const 1) (i32.const 0))", ..Toy::default() }
        .fails("it was stopped: wasm trap: integer divide by zero");
    let length = serde_json::to_vec(&request()).unwrap().len();
    Toy { assign: "(call $read (i32.const -8)) (i32.const 0)", ..Toy::default() }
        .fails(&format!("it wants the request of {length} bytes at 4294967288, outside its memory"));
    Toy { assign: "(call $write (i32.const 131000) (i32.const 1000)) (i32.const 0)", ..Toy::default() }
        .fails("its response of 1000 bytes at 131000 lies outside its memory");
    Toy { assign: "(call $log (i32.const 1) (i32.const 0) (i32.const -1)) (i32.const 0)", ..Toy::default() }
        .fails("its log line of 4294967295 bytes at 0 lies outside its memory");
    Toy { assign: "(i32.const 0)", ..Toy::default() }.fails("it returned without a response");
    Toy { assign: &format!("(drop (block (result i32) {WRITE})) {WRITE}"), ..Toy::default() }
        .fails("it wrote two responses to one call");
    Toy { assign: &WRITE.replace("(i32.const 0)", "(i32.const 2)"), ..Toy::default() }
        .fails("`assign` returned 2; expected 0 (a plan) or 1 (an error)");
}

#[test]
fn answers_that_are_no_plan_are_named() {
    let answer = |plan: &[u8], expected: &str| Toy { plan, ..Toy::default() }.fails(expected);
    answer(&[b'"', 0xff, b'"'], "its plan is no UTF-8 (at byte 1)");
    answer(b"{", "its plan is not one: EOF while parsing an object at line 1 column 1");
    answer(
        b"[]",
        "its plan is not one: invalid length 0, expected struct PolicyPlan with 2 elements at line 1 column 2",
    );
    answer(
        &[b'['; 100_000],
        "its plan is not one: invalid type: sequence, expected a string at line 1 column 1",
    );
    answer(
        br#"{"format":"taq.policy_plan.v1","layers":[],"extra":1}"#,
        "its plan is not one: unknown field `extra`, expected `format` or `layers` at line 1 column 50",
    );
    answer(
        br#"{"format":"taq.policy_plan.v1","layers":[{"id":"a","weight_bits":4,"activation_bits":[NaN]}]}"#,
        "its plan is not one: expected value at line 1 column 87",
    );
}

#[test]
fn descriptions_are_checked() {
    let described = |from: &str, to: &str, expected: &str| {
        let info = INFO.replace(from, to);
        assert_ne!(info, INFO);
        Toy { info: info.as_bytes(), ..Toy::default() }.fails(expected);
    };
    described(
        "info.v1",
        "info.v9",
        "the format of its description is `taq.policy_info.v9`; expected `taq.policy_info.v1`",
    );
    described(
        "toy",
        "../toy",
        "the name in its description is `../toy`; expected 1 to 64 letters, digits and -_.+",
    );
    described("1.0.0", "", "the version in its description is ``; expected 1 to 64 letters, digits and -_.+");
    described(
        "\"name\"",
        "\"nom\"",
        "its description is not one: unknown field `nom`, expected one of `format`, `name`, `version`, `summary`, `settings_schema`, `per_channel` at line 1 column 36",
    );
}

#[test]
fn modules_that_are_no_policy_are_refused_before_they_run() {
    text_fails("(module)", "it is no policy of taq: the export `taq_policy_abi_v1` is missing");
    text_fails(
        r#"(module (func (export "taq_policy_abi_v2")))"#,
        "it speaks version 2 of the policy ABI; this version of taq speaks 1",
    );
    text_fails(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))"#,
        "it imports `wasi_snapshot_preview1.fd_write`: policies have no WASI; build it without a standard library that \
         wants one",
    );
    let offered = "offered are `taq.read_request`, `taq.write_response`, `taq.log`";
    text_fails(r#"(module (import "env" "abort" (func)))"#, &format!("it imports `env.abort`; {offered}"));
    text_fails(r#"(module (import "taq" "clock" (func)))"#, &format!("it imports `taq.clock`; {offered}"));
    text_fails(
        r#"(module (import "taq" "log" (func (param i64))))"#,
        "it imports `taq.log` with another signature; expected (i32, i32, i32) -> nothing",
    );
    text_fails(
        r#"(module (import "taq" "log" (memory 1)))"#,
        "it imports `taq.log`, which is a function, as another kind",
    );
    let with = |rest: &str| format!(r#"(module (func (export "taq_policy_abi_v1")) {rest})"#);
    text_fails(&with(""), "the export `memory` is missing");
    text_fails(&with(r#"(global (export "memory") i32 (i32.const 1))"#), "its export `memory` is no memory");
    let with = |rest: &str| with(&format!(r#"(memory (export "memory") 1) {rest}"#));
    text_fails(&with(""), "the export `describe` is missing");
    text_fails(
        &with(r#"(func (export "describe"))"#),
        "its export `describe` has another signature; expected () -> i32",
    );
    let describe = r#"(func (export "describe") (result i32) (i32.const 0))"#;
    text_fails(&with(describe), "the export `assign` is missing");
    text_fails(
        &with(&format!(r#"{describe} (func (export "assign") (param i64) (result i32) (i32.const 0))"#)),
        "its export `assign` has another signature; expected (i32) -> i32",
    );
    Toy { memory: "(memory (export \"memory\") i64 1)", ..Toy::default() }
        .fails("its memory is 64-bit, shared or of other pages; policies have a plain 32-bit one");
}

#[test]
fn files_that_are_no_module_are_refused() {
    let fails = |bytes: &[u8], expected: &str| assert_eq!(run_bytes(bytes).unwrap_err(), expected);
    fails(b"", "it is no WebAssembly: it does not begin with `\\0asm`");
    fails(b"#!/bin/sh", "it is no WebAssembly: it does not begin with `\\0asm`");
    fails(&vec![0; 9 << 20], "it is no WebAssembly: it does not begin with `\\0asm`");
    let long = |layer: &[u8], length: usize| [layer, &vec![0; length - 8]].concat();
    fails(&long(b"\0asm\x01\0\0\0", 9 << 20), "it is 9437184 bytes long; at most 8388608 are taken");
    fails(&long(b"\0asm\x0d\0\x01\0", 65 << 20), "it is 68157440 bytes long; at most 67108864 are taken");
    let whole = wat::parse_str(Toy::default().text()).unwrap();
    for length in 4..whole.len() {
        let known = ["it is ", "its description ", "the export "];
        match run_bytes(&whole[..length]) {
            // Only the section with the functions' names is gone.
            Ok(run) => assert_eq!(run.response, PLAN.as_bytes(), "{length} bytes"),
            // Cut between two sections it is a module, only not this one.
            Err(error) => assert!(known.iter().any(|k| error.starts_with(k)), "{length} bytes: {error}"),
        }
    }
    // Valid in its sections, wrong in its code.
    let broken = Toy { assign: "(i32.add)", ..Toy::default() }.text();
    let error = wat::parse_str(broken).map(|bytes| run_bytes(&bytes).unwrap_err());
    assert!(error.is_err() || error.unwrap().starts_with("it is not valid: "));
}

#[test]
fn code_that_would_compile_for_ever_is_not_compiled() {
    let long = "(drop (i32.add (local.get $length) (i32.const 1)))".repeat(150_000);
    let error = Toy { assign: &format!("{long} (i32.const 0)"), ..Toy::default() }.run().unwrap_err();
    assert!(
        error.starts_with("one of its functions is ") && error.ends_with("at most 524288 are compiled"),
        "{error}"
    );
    let many = "(func)".repeat(50_001);
    Toy { fields: &many, ..Toy::default() }.fails("it has 50004 functions; at most 50000 are taken");
}

#[test]
fn the_log_is_bounded() {
    let lines = "(loop $again
        (call $log (i32.const 3) (i32.const 0) (i32.const 20))
        (local.set $length (i32.add (local.get $length) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $length) (i32.const 100000))))";
    let assign = format!("{lines} {WRITE}");
    let counted = Lines::default();
    let run = tracing::subscriber::with_default(counted.clone(), || {
        Toy { assign: &assign, ..Toy::default() }.run()
    });
    assert_eq!(run.unwrap().plan.layers.len(), 1);
    // Once when the settings are tried, once for the plan.
    assert_eq!(counted.0.load(Ordering::Relaxed), 2 * LOG_LINES);
}
