//! Whether Rust compiles to WebAssembly here.

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
