//! Components that are well, wrong or hostile.

use serde_json::{Value, json};
use std::sync::atomic::Ordering;

use super::{INFO, Lines, PLAN, quoted, request, run_bytes};
use crate::wasm::limits::LOG_LINES;
use crate::wasm::{PolicyRun, WasmPolicy};

const LOG: &str = r#"(import "taq:policy/log@1.0.0" (instance $log
    (export "write" (func (param "level" u8) (param "line" string)))))"#;
const DESCRIBE_TYPE: &str = "(result string)";
const ASSIGN_TYPE: &str = r#"(param "request" string) (result (result string (error string)))"#;
/// Where a result lies whose string is the plan: 0 for a plan, its address, its length.
const ANSWER: &str = "(call $answer (i32.const 0) (i32.const 4096) (global.get $plan))";

/// A complete policy as a component: `info` lies at 0, `plan` at 4096; the others are pieces of its text.
struct Toy<'a> {
    info: &'a [u8],
    plan: &'a [u8],
    import: &'a str,
    export: &'a str,
    memory: &'a str,
    describe_type: &'a str,
    assign_type: &'a str,
    realloc: &'a str,
    describe: &'a str,
    assign: &'a str,
    encoding: &'a str,
    core: &'a str,
    outer: &'a str,
}

impl Default for Toy<'_> {
    fn default() -> Self {
        Self {
            info: INFO.as_bytes(),
            plan: PLAN.as_bytes(),
            import: LOG,
            export: "taq:policy/bit-policy@1.0.0",
            memory: "2",
            describe_type: DESCRIBE_TYPE,
            assign_type: ASSIGN_TYPE,
            realloc: "(i32.const 65536)",
            describe: "(call $answer (i32.const 0) (i32.const 0) (global.get $info)) (i32.const 4) i32.add",
            assign: ANSWER,
            encoding: "",
            core: "",
            outer: "",
        }
    }
}

impl Toy<'_> {
    fn text(&self) -> String {
        format!(
            r#"(component
                {import}
                (core module $heap
                    (memory (export "memory") {memory})
                    (func (export "realloc") (param $old i32) (param i32 i32) (param $new i32) (result i32) {realloc}))
                (core instance $heap (instantiate $heap))
                (core func $write (canon lower (func $log "write") (memory $heap "memory")))
                (core module $policy
                    (import "heap" "memory" (memory 1))
                    (import "log" "write" (func $write (param i32 i32 i32)))
                    (global $info i32 (i32.const {info_length}))
                    (global $plan i32 (i32.const {plan_length}))
                    (data (i32.const 0) {info}) (data (i32.const 4096) {plan})
                    (func $answer (param $case i32) (param $at i32) (param $length i32) (result i32)
                        (i32.store8 (i32.const 60000) (local.get $case))
                        (i32.store (i32.const 60004) (local.get $at))
                        (i32.store (i32.const 60008) (local.get $length))
                        (i32.const 60000))
                    {core}
                    (func (export "describe") (result i32) {describe})
                    (func $assign (export "assign") (param $at i32) (param $length i32) (result i32) {assign}))
                (core instance $policy (instantiate $policy
                    (with "heap" (instance $heap))
                    (with "log" (instance (export "write" (func $write))))))
                {outer}
                (func $describe {describe_type}
                    (canon lift (core func $policy "describe") (memory $heap "memory") {encoding}))
                (func $assign {assign_type} (canon lift (core func $policy "assign") (memory $heap "memory")
                    (realloc (func $heap "realloc")) {encoding}))
                (instance $exports (export "describe" (func $describe)) (export "assign" (func $assign)))
                (export "{export}" (instance $exports)))"#,
            import = self.import,
            memory = self.memory,
            realloc = self.realloc,
            info_length = self.info.len(),
            plan_length = self.plan.len(),
            info = quoted(self.info),
            plan = quoted(self.plan),
            core = self.core,
            describe = self.describe,
            assign = self.assign,
            outer = self.outer,
            describe_type = self.describe_type,
            assign_type = self.assign_type,
            encoding = self.encoding,
            export = self.export,
        )
    }

    fn run(&self) -> Result<PolicyRun, String> {
        run_bytes(&wat::parse_str(self.text()).unwrap())
    }

    #[track_caller]
    fn fails(&self, expected: &str) {
        assert_eq!(self.run().unwrap_err(), expected);
    }
}

#[track_caller]
fn text_fails(text: &str, expected: &str) {
    assert_eq!(run_bytes(&wat::parse_str(text).unwrap()).unwrap_err(), expected);
}

#[test]
fn a_component_answers_with_its_plan_and_the_same_fuel_every_time() {
    let first = Toy::default().run().unwrap();
    assert_eq!(first.plan.layers[0].activation_bits, [8, 8]);
    assert_eq!(first.response, PLAN.as_bytes());
    assert!(first.fuel > 0 && first.fuel < 1000, "{}", first.fuel);
    assert_eq!(first.memory, 2 * 65536);
    assert_eq!(Toy::default().run().unwrap(), first);
}

#[test]
fn it_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.wasm");
    std::fs::write(&path, wat::parse_str(Toy::default().text()).unwrap()).unwrap();
    let cache = folder.path().join("cache");
    for _ in 0..2 {
        let policy = WasmPolicy::load_with(&path, &Value::Null, Some(&cache)).unwrap();
        let facts = policy.facts();
        assert!(facts.component);
        assert_eq!((facts.functions, facts.memory_pages), (4, 2));
        assert_eq!(facts.imports, ["taq:policy/log@1.0.0"]);
        assert_eq!(facts.exports, ["taq:policy/bit-policy@1.0.0"]);
        assert_eq!(policy.run(&request()).unwrap().response, PLAN.as_bytes());
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "kept once, and found again");
    }
}

#[test]
fn a_component_reads_its_settings_and_says_no() {
    let toy = Toy {
        plan: b"settings: no \x1b[31m",
        assign: "(call $answer (i32.eq (i32.load8_u (local.get $at)) (i32.const 0x7b))
                     (i32.const 4096) (global.get $plan))",
        ..Toy::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.wasm");
    std::fs::write(&path, wat::parse_str(toy.text()).unwrap()).unwrap();
    let error = WasmPolicy::load_with(&path, &json!({ "x": 1 }), None).err().unwrap().to_string();
    assert_eq!(error, format!("policy `{}`: settings: no \\u{{1b}}[31m", path.display()));
}

#[test]
fn what_takes_too_much_is_stopped() {
    Toy { assign: "(loop (br 0)) (i32.const 0)", ..Toy::default() }
        .fails("it did not end within 5000 million instructions (an endless loop?)");
    let short = "it did not end within 200 million instructions (an endless loop?)";
    Toy { core: "(func $spin (loop (br 0))) (start $spin)", ..Toy::default() }.fails(short);
    Toy { describe: "(loop (br 0)) (i32.const 0)", ..Toy::default() }.fails(short);
    Toy { realloc: "(loop (br 0)) (i32.const 0)", ..Toy::default() }
        .fails("it did not end within 5000 million instructions (an endless loop?)");
    Toy { assign: "(call $assign (local.get $at) (local.get $length))", ..Toy::default() }
        .fails("it ran out of its 512 KiB of stack (an endless recursion?)");
    Toy { assign: "(loop (drop (memory.grow (i32.const 64))) (br 0)) (i32.const 0)", ..Toy::default() }
        .fails("it asked for 65 MiB of memory; at most 64 MiB are given");
    Toy { memory: "65536", ..Toy::default() }
        .fails("it begins with 65536 pages of memory; at most 1024 (64 MiB) are given");
    // Two halves and one more page.
    Toy { memory: "512", core: "(memory 513)", ..Toy::default() }
        .fails("it begins with 1025 pages of memory; at most 1024 (64 MiB) are given");
    // One module, many times.
    let again =
        format!("(core module $big (memory 1020)) {}", "(core instance (instantiate $big))".repeat(2));
    Toy { outer: &again, ..Toy::default() }.fails("it asked for 128 MiB of memory; at most 64 MiB are given");
    let again = format!("(core module $m) {}", "(core instance (instantiate $m))".repeat(200));
    Toy { outer: &again, ..Toy::default() }
        .fails("it was stopped: resource limit exceeded: instance count too high at 101");
    Toy { core: "(table 10000000 funcref)", ..Toy::default() }
        .fails("it begins with a table of 10000000 elements; at most 100000 are given");
    let handles = r#"(type $r (resource (rep i32)))
        (core func $new (canon resource.new $r))
        (core module $m (import "" "new" (func $new (param i32) (result i32)))
            (func $spin (loop (drop (call $new (i32.const 1))) (br 0))) (start $spin))
        (core instance (instantiate $m (with "" (instance (export "new" (func $new))))))"#;
    Toy { outer: handles, ..Toy::default() }
        .fails("it was stopped: cannot allocate another handle: store handle limit exceeded");
}

#[test]
fn results_that_lie_are_named() {
    let outside = "it was stopped: string pointer/length out of bounds of memory";
    let answer = |at: &str, length: &str| format!("(call $answer (i32.const 0) ({at}) ({length}))");
    for (at, length) in [
        ("i32.const -4", "i32.const 4"),
        ("i32.const 4", "i32.const -1"),
        ("i32.const 131071", "i32.const 2"),
        ("i32.const -1", "i32.const -1"),
    ] {
        Toy { assign: &answer(at, length), ..Toy::default() }.fails(outside);
    }
    Toy { assign: "(i32.const -3)", ..Toy::default() }.fails("it was stopped: return pointer not aligned");
    Toy { assign: "(i32.const 1)", ..Toy::default() }.fails("it was stopped: return pointer not aligned");
    Toy { assign: "(call $answer (i32.const 2) (i32.const 0) (i32.const 1))", ..Toy::default() }
        .fails("it was stopped: invalid expected discriminant");
    Toy { memory: "400", assign: &answer("i32.const 0", "i32.const 8388609"), ..Toy::default() }
        .fails("its response or a line of its log is longer than 8388608 bytes");
    Toy { plan: &[b'"', 0xff, b'"'], ..Toy::default() }
        .fails("it was stopped: invalid utf-8 sequence of 1 bytes from index 1");
    let wide = "string-encoding=utf16";
    Toy { encoding: wide, describe: "(unreachable)", ..Toy::default() }
        .fails("it gave up (`unreachable`: a panic or an abort)");
    Toy {
        encoding: wide,
        info: b"\x00\xd8",
        describe: "(call $answer (i32.const 0) (i32.const 0) (i32.const 1)) (i32.const 4) i32.add",
        ..Toy::default()
    }
    .fails("it was stopped: unpaired surrogate found: d800");
    Toy { realloc: "(i32.const -1)", ..Toy::default() }
        .fails("it was stopped: realloc return: beyond end of memory");
    Toy { assign: "unreachable", ..Toy::default() }.fails("it gave up (`unreachable`: a panic or an abort)");
    Toy { plan: b"[]", ..Toy::default() }.fails(
        "its plan is not one: invalid length 0, expected struct PolicyPlan with 2 elements at line 1 column 2",
    );
    Toy { info: b"{}", ..Toy::default() }
        .fails("its description is not one: missing field `format` at line 1 column 2");
}

#[test]
fn imports_other_than_ours_are_refused_before_it_runs() {
    let with = |import: &str| format!("(component {import})");
    text_fails(
        &with(r#"(import "wasi:cli/environment@0.2.3" (instance))"#),
        "it imports `wasi:cli/environment@0.2.3`: policies have no WASI; build it without (jco: `--disable all`; \
         componentize-py: `--stub-wasi`)",
    );
    let offered = "offered is `taq:policy/log@1.0.0`";
    for name in ["taq:policy/log@2.0.0", "taq:policy/clock@1.0.0", "log", "http:\u{1b}"] {
        let text = with(&format!(r#"(import "{name}" (func))"#));
        let Ok(bytes) = wat::parse_str(&text) else { continue };
        let shown = name.replace('\u{1b}', "\\u{1b}");
        assert_eq!(run_bytes(&bytes).unwrap_err(), format!("it imports `{shown}`; {offered}"));
    }
    for kind in ["func", "component", "core module"] {
        text_fails(
            &with(&format!(r#"(import "taq:policy/log@1.0.0" ({kind}))"#)),
            "it imports `taq:policy/log@1.0.0`, which is an interface, as another kind",
        );
    }
    let log = |body: &str| format!(r#"(import "taq:policy/log@1.0.0" (instance $log {body}))"#);
    let write = r#"(export "write" (func (param "level" u8) (param "line" string)))"#;
    Toy { import: &log(&format!(r#"{write} (export "read" (func (result string)))"#)), ..Toy::default() }
        .fails("it imports `read` of `taq:policy/log@1.0.0`; offered is `write`");
    Toy { import: &log(r#"(export "write" (func (param "level" u32) (param "line" string)))"#), ..Toy::default() }
        .fails(
            "it imports `write` of `taq:policy/log@1.0.0` with another type; expected func(level: u8, line: string)",
        );
}

#[test]
fn exports_other_than_the_contract_are_named() {
    text_fails("(component)", "it is no policy of taq: the export `taq:policy/bit-policy@1.0.0` is missing");
    Toy { export: "taq:policy/bit-policy@2.0.0", ..Toy::default() }
        .fails("it speaks version 2.0.0 of `taq:policy`; this version of taq speaks 1.0.0");
    let interface = |exports: &str| {
        format!(
            r#"(component (import "taq:policy/log@1.0.0" (instance $log)) (instance $e {exports})
                (export "taq:policy/bit-policy@1.0.0" (instance $e)))"#
        )
    };
    text_fails(&interface(""), "`describe` is missing in its export `taq:policy/bit-policy@1.0.0`");
    text_fails(
        r#"(component (type $t u8) (export "taq:policy/bit-policy@1.0.0" (type $t)))"#,
        "its export `taq:policy/bit-policy@1.0.0` is no interface",
    );
    text_fails(
        &interface(r#"(export "describe" (instance $log))"#),
        "`describe` in its export `taq:policy/bit-policy@1.0.0` has another type; expected func() -> string",
    );
    Toy { describe_type: "(result (list u8))", ..Toy::default() }.fails(
        "`describe` in its export `taq:policy/bit-policy@1.0.0` has another type; expected func() -> string",
    );
    for ty in [
        r#"(param "request" string) (result string)"#,
        r#"(param "request" string) (result (result string (error u32)))"#,
        r#"(param "request" string) (result (result (error string)))"#,
        r#"(param "request" (list u8)) (result (result string (error string)))"#,
    ] {
        let toy = Toy { assign_type: ty, ..Toy::default() };
        let error = toy.run().unwrap_err();
        assert!(
            error.ends_with("has another type; expected func(request: string) -> result<string, string>")
                || error.starts_with("it is not valid: "),
            "{ty}: {error}"
        );
    }
}

#[test]
fn what_is_no_single_component_is_refused() {
    let composed = "it is composed of several components; a policy is a single one";
    Toy { outer: "(component $inner (core module))", ..Toy::default() }.fails(composed);
    Toy { outer: "(component $inner (component $c) (instance (instantiate $c)))", ..Toy::default() }
        .fails(composed);
    Toy {
        outer: "(component $inner (type $r (resource (rep i32))) (core func (canon resource.new $r)))",
        ..Toy::default()
    }
    .fails(composed);
    // As the tools write an exported interface.
    let named = r#"(component $inner (import "f" (func $f (result u8))) (export "g" (func $f)))"#;
    assert_eq!(Toy { outer: named, ..Toy::default() }.run().unwrap().response, PLAN.as_bytes());
}

#[test]
fn truncated_components_are_refused() {
    let whole = wat::parse_str(Toy::default().text()).unwrap();
    for length in (0..whole.len()).step_by(7) {
        let error = run_bytes(&whole[..length]).unwrap_err();
        assert!(error.starts_with("it is "), "{length} bytes: {error}");
    }
    let mut other = whole;
    other[4] = 0x0e;
    let error = run_bytes(&other).unwrap_err();
    assert!(error.starts_with("it is truncated or damaged: "), "{error}");
}

#[test]
fn the_log_is_bounded() {
    let call = "(call $write (i32.const 3) (i32.const 0) (i32.const 20))";
    let assign = format!(
        "(loop $again {call} (local.set $length (i32.add (local.get $length) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $length) (i32.const 100000)))) {ANSWER}"
    );
    let counted = Lines::default();
    let run = tracing::subscriber::with_default(counted.clone(), || {
        Toy { assign: &assign, ..Toy::default() }.run()
    });
    assert_eq!(run.unwrap().plan.layers.len(), 1);
    assert_eq!(counted.0.load(Ordering::Relaxed), 2 * LOG_LINES);
    Toy { describe: &format!("(loop {call} (br 0)) (i32.const 0)"), ..Toy::default() }
        .fails("it did not end within 200 million instructions (an endless loop?)");
    Toy {
        assign: &format!("(call $write (i32.const 1) (i32.const 0) (i32.const -1)) {ANSWER}"),
        ..Toy::default()
    }
    .fails("it was stopped: string pointer/length out of bounds of memory");
    Toy {
        plan: &[0xff; 40],
        assign: &format!("(call $write (i32.const 1) (i32.const 4096) (i32.const 4)) {ANSWER}"),
        ..Toy::default()
    }
    .fails("it was stopped: invalid utf-8 sequence of 1 bytes from index 0");
}
