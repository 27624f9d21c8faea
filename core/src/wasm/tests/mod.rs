//! Policies that are well, wrong or hostile. After each of them the host still runs a good one.

mod components;
mod hostile;
mod modules;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use taq_policy::{LayerSpec, PolicyRequest, Role, Stream, Timestep};

use super::{PolicyRun, WasmPolicy};

const INFO: &str = r#"{"format":"taq.policy_info.v1","name":"toy","version":"1.0.0","summary":"A toy."}"#;
const PLAN: &str =
    r#"{"format":"taq.policy_plan.v1","layers":[{"id":"a","weight_bits":4,"activation_bits":[8,8]}]}"#;

fn request() -> PolicyRequest {
    let layer = LayerSpec {
        id: "a".into(),
        block: "mm0".into(),
        stream: Stream::Image,
        role: Role::Q,
        in_features: 8,
        out_features: 8,
        post_gelu: false,
    };
    let timesteps = vec![Timestep { step: 0, sigma: 1.0 }, Timestep { step: 1, sigma: 0.5 }];
    PolicyRequest::new("toy", vec![layer], timesteps)
}

/// A string for the text format.
fn quoted(text: &[u8]) -> String {
    let bytes: String = text.iter().map(|b| format!("\\{b:02x}")).collect();
    format!("\"{bytes}\"")
}

/// A complete policy: `info` lies at 0, `plan` at 4096; `assign` is the body of the function of that name.
struct Toy<'a> {
    info: &'a [u8],
    plan: &'a [u8],
    memory: &'a str,
    fields: &'a str,
    assign: &'a str,
}

/// Writes the plan.
const WRITE: &str = "(call $write (i32.const 4096) (global.get $plan)) (i32.const 0)";

impl Default for Toy<'_> {
    fn default() -> Self {
        Self {
            info: INFO.as_bytes(),
            plan: PLAN.as_bytes(),
            memory: "(memory (export \"memory\") 2)",
            fields: "",
            assign: WRITE,
        }
    }
}

impl Toy<'_> {
    fn text(&self) -> String {
        format!(
            r#"(module
                (import "taq" "read_request" (func $read (param i32)))
                (import "taq" "write_response" (func $write (param i32 i32)))
                (import "taq" "log" (func $log (param i32 i32 i32)))
                {memory}
                (global $plan i32 (i32.const {plan_length}))
                (data (i32.const 0) {info}) (data (i32.const 4096) {plan})
                {fields}
                (func (export "taq_policy_abi_v1"))
                (func (export "describe") (result i32)
                    (call $write (i32.const 0) (i32.const {info_length})) (i32.const 0))
                (func $assign (export "assign") (param $length i32) (result i32) {assign}))"#,
            memory = self.memory,
            plan_length = self.plan.len(),
            info = quoted(self.info),
            plan = quoted(self.plan),
            fields = self.fields,
            info_length = self.info.len(),
            assign = self.assign,
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

/// The outcome, without the path in front of it. If it is an error, a good policy still works.
fn run_bytes(bytes: &[u8]) -> Result<PolicyRun, String> {
    let outcome = run_once(bytes);
    if outcome.is_err() {
        let good = run_once(&wat::parse_str(Toy::default().text()).unwrap());
        assert_eq!(good.expect("a good policy runs after a bad one").response, PLAN.as_bytes());
    }
    outcome
}

fn run_once(bytes: &[u8]) -> Result<PolicyRun, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.wasm");
    fs::write(&path, bytes).unwrap();
    let outcome = WasmPolicy::load_with(&path, &Value::Null, None).and_then(|policy| policy.run(&request()));
    let head = format!("policy `{}`: ", path.display());
    outcome.map_err(|e| e.to_string().strip_prefix(&head).expect("the message names the file").to_owned())
}

#[track_caller]
fn text_fails(text: &str, expected: &str) {
    assert_eq!(run_bytes(&wat::parse_str(text).unwrap()).unwrap_err(), expected);
}

/// Counts the lines that reach the log as information.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::INFO
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
