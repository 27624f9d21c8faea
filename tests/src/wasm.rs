//! Whether Rust compiles to WebAssembly here, and a policy in its text format.

use std::path::Path;
use std::process::Command;

/// Whether rustc has the target `wasm32-unknown-unknown`; if not, says so for a test that then skips.
pub fn compiles_to_wasm() -> bool {
    let libraries = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", "wasm32-unknown-unknown"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    let there = Path::new(&libraries).is_dir();
    if !there {
        eprintln!("skipped: rustup target add wasm32-unknown-unknown");
    }
    there
}

/// A policy as a module that answers every request with this.
pub fn answering(answer: &str) -> Vec<u8> {
    let info = r#"{"format":"taq.policy_info.v1","name":"toy","version":"1.0.0","summary":"A toy."}"#;
    let quoted = |text: &str| text.bytes().map(|b| format!("\\{b:02x}")).collect::<String>();
    wat::parse_str(format!(
        r#"(module
            (import "taq" "write_response" (func $write (param i32 i32)))
            (memory (export "memory") 33)
            (data (i32.const 0) "{}") (data (i32.const 4096) "{}")
            (func (export "taq_policy_abi_v1"))
            (func (export "describe") (result i32)
                (call $write (i32.const 0) (i32.const {})) (i32.const 0))
            (func (export "assign") (param i32) (result i32)
                (call $write (i32.const 4096) (i32.const {})) (i32.const 0)))"#,
        quoted(info),
        quoted(answer),
        info.len(),
        answer.len(),
    ))
    .expect("a module")
}
