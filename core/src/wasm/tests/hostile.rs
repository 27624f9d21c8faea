//! Core modules that try what the limits do not name at first sight.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Lines, PLAN, Toy, WRITE, request, run_bytes};
use crate::wasm::WasmPolicy;
use crate::wasm::limits::LOG_LINES;

const LOOPS: &str = "it did not end within 5000 million instructions (an endless loop?)";

/// What ends by fuel ends within seconds, too: a start function runs with the little fuel of `describe`.
#[test]
fn work_of_the_host_costs_fuel() {
    for call in [
        "(call $read (i32.const 8192))",
        "(call $log (i32.const 4) (i32.const 0) (i32.const 65536))",
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 131072))",
        "(memory.copy (i32.const 0) (i32.const 1) (i32.const 131071))",
        "(table.fill $t (i32.const 0) (ref.null func) (i32.const 100000))",
        "(drop (memory.grow (i32.const 0)))",
        "(drop (table.grow $t (ref.null func) (i32.const 0)))",
    ] {
        let fields = format!("(table $t 100000 funcref) (func $spin (loop {call} (br 0))) (start $spin)");
        let start = Instant::now();
        Toy { fields: &fields, ..Toy::default() }
            .fails("it did not end within 200 million instructions (an endless loop?)");
        assert!(start.elapsed() < Duration::from_secs(60), "{call}: {:?}", start.elapsed());
    }
}

#[test]
fn a_start_function_is_held_to_the_rules_too() {
    let start = |body: &str| format!("(func $start {body}) (start $start)");
    let fields = start("(call $write (i32.const 0) (i32.const 2))");
    Toy { fields: &fields, ..Toy::default() }.fails("it wrote two responses to one call");
    let fields = start("(call $read (i32.const 131071))");
    let length = serde_json::to_vec(&request()).unwrap().len();
    // `describe` has no request to read; `assign` has.
    Toy { fields: &fields, ..Toy::default() }
        .fails(&format!("it wants the request of {length} bytes at 131071, outside its memory"));
    let lines = "(local $i i32) (loop $again (call $log (i32.const 3) (i32.const 0) (i32.const 65536))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 1000))))";
    let fields = start(lines);
    let counted = Lines::default();
    let run = tracing::subscriber::with_default(counted.clone(), || {
        Toy { fields: &fields, ..Toy::default() }.run()
    });
    assert_eq!(run.unwrap().response, PLAN.as_bytes());
    // `describe`, the settings, the plan.
    assert_eq!(counted.0.load(Ordering::Relaxed), 3 * LOG_LINES);
}

#[test]
fn settings_that_make_it_loop_are_given_up_quickly() {
    // A policy that loops if its request holds settings: longer than the others by more than ten bytes.
    let assign =
        "(if (i32.gt_u (local.get $length) (i32.const 400)) (then (loop (br 0))))".to_owned() + WRITE;
    let text = Toy { assign: &assign, ..Toy::default() }.text();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.wasm");
    fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    let start = Instant::now();
    let policy = WasmPolicy::load_with(&path, &json!({ "x": "y".repeat(400) }), None).unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let error = policy.run(&request()).unwrap_err().to_string();
    assert!(error.ends_with(LOOPS), "{error}");
    assert!(WasmPolicy::load_with(&path, &Value::Null, None).unwrap().run(&request()).is_ok());
}

#[test]
fn sections_that_are_large_or_odd() {
    // A custom section of the largest size, and names that are none.
    let whole = wat::parse_str(Toy::default().text()).unwrap();
    let custom = |name: &str, content: &[u8]| {
        let mut payload = leb(name.len());
        payload.extend(name.as_bytes());
        payload.extend(content);
        [&[0][..], &leb(payload.len()), &payload].concat()
    };
    for (name, content) in [("x", vec![0; 8_000_000]), ("name", vec![0xff; 1000]), ("producers", vec![7; 10])]
    {
        let bytes = [&whole[..], &custom(name, &content)].concat();
        assert_eq!(run_bytes(&bytes).unwrap().response, PLAN.as_bytes(), "{name}");
    }
    let zeros = "\\00".repeat(1 << 20);
    let data = format!("(data (i32.const 8192) \"{zeros}\")");
    Toy { fields: &data, ..Toy::default() }.fails("it reached outside its memory");
    let fits = Toy { memory: "(memory (export \"memory\") 20)", fields: &data, ..Toy::default() };
    assert_eq!(fits.run().unwrap().memory, 20 << 16);
    Toy { fields: "(elem (table $t) (i32.const 9) func $assign) (table $t 1 funcref)", ..Toy::default() }
        .fails("it was stopped: wasm trap: undefined element: out of bounds table access");
}

fn leb(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[test]
fn what_webassembly_forbids_is_not_valid() {
    let invalid = |fields: &str, assign: &str, reason: &str| {
        let error = Toy { fields, assign, ..Toy::default() }.run().unwrap_err();
        assert!(error.starts_with("it is not valid: ") && error.contains(reason), "{error}");
    };
    invalid("(export \"memory\" (func $assign))", WRITE, "duplicate export name `memory`");
    invalid("(memory 1)", WRITE, "multiple memories");
    invalid("", "(i64.const 0)", "type mismatch");
    invalid("(func (result i32) (i32.const 0)) (start 5)", WRITE, "invalid start function type");
    invalid("(global i32 (i32.const 1)) (func (global.set 1 (i32.const 2)))", WRITE, "global is immutable");
}

#[test]
fn what_is_not_webassembly_2_is_refused() {
    let refused = |fields: &str, assign: &str| {
        let error = Toy { fields, assign, ..Toy::default() }.run().unwrap_err();
        assert!(
            error.starts_with("it is not valid: ") && !error.contains("unknown"),
            "{fields} {assign}: {error}"
        );
    };
    for (fields, assign) in [
        ("(func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1)))", WRITE),
        ("(tag $e)", WRITE),
        ("(tag $e) (func (throw $e))", WRITE),
        ("(type $s (struct (field i32)))", WRITE),
        ("(func (result (ref i31)) (ref.i31 (i32.const 1)))", WRITE),
        ("(func (param i32) (result i32) (i32.atomic.load (local.get 0)))", WRITE),
        (
            "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))",
            WRITE,
        ),
        ("(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))", WRITE),
        ("(type $f (func)) (type $c (cont $f))", WRITE),
    ] {
        refused(fields, assign);
    }
    let memory = |memory: &str, expected: &str| Toy { memory, ..Toy::default() }.fails(expected);
    let plain = "its memory is 64-bit, shared or of other pages; policies have a plain 32-bit one";
    memory("(memory (export \"memory\") i64 1)", plain);
    memory("(memory (export \"memory\") 1 2 shared)", plain);
    memory("(memory (export \"memory\") 65536 (pagesize 1))", plain);
}

#[test]
fn vectors_and_tail_calls_may_be_used() {
    let fields = "(func $f (param i32) (result i32) (local.get 0))
        (func (result i32) (i32x4.extract_lane 0 (i32x4.splat (i32.const 1))))";
    let toy = Toy { fields, assign: &format!("{WRITE} (return_call $f)"), ..Toy::default() };
    assert_eq!(toy.run().unwrap().response, PLAN.as_bytes());
}

/// Small modules that a compiler takes minutes and gigabytes over.
#[test]
fn what_would_fill_the_compiler_is_not_compiled() {
    let fails = |fields: &str, expected: &str| Toy { fields, ..Toy::default() }.fails(expected);
    // Every variable at the head of every loop: 16 KB of code.
    let mut nest = format!("(func (param i32) (local {})", "i32 ".repeat(1000));
    nest.push_str(&"loop ".repeat(1000));
    for at in 1..=1000 {
        let _ = write!(nest, "(local.set {at} (i32.add (local.get {at}) (i32.const 1)))");
    }
    nest.push_str(&"(br_if 0 (local.get 0)) end ".repeat(1000));
    nest.push(')');
    fails(
        &nest,
        "one of its functions has too many variables for its blocks and loops (their product is 5000000); at most \
         1000000 is compiled",
    );
    // A thousand values go in and out at every call.
    let many = "i32 ".repeat(900);
    fails(
        &format!("(func $g (param {many}) (result {many}) unreachable)"),
        "it has a function or a block of 900 parameters and 900 results; at most 50 and 4 are compiled",
    );
    let targets = "0 ".repeat(100_000);
    let error =
        Toy { fields: &format!("(func (param i32) (br_table {targets} (local.get 0)))"), ..Toy::default() }
            .run()
            .unwrap_err();
    assert!(
        error.starts_with("it is not valid: ") && error.contains("`br_table` has 99999 targets"),
        "{error}"
    );
}

#[test]
fn many_functions_of_many_blocks_are_compiled() {
    let block = "(block (br_if 0 (local.get 0)) (local.set 1 (i32.add (local.get 1) (local.get 0))))";
    let function = format!("(func (param i32) (local i32) {})", block.repeat(5));
    let start = Instant::now();
    let run = Toy { fields: &function.repeat(20_000), ..Toy::default() }.run();
    assert_eq!(run.unwrap().response, PLAN.as_bytes());
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}
