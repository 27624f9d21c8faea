//! What the stamp of a library says of its making: the compiler and the target.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|o| String::from_utf8(o.stdout).ok()).unwrap_or_default();
    println!("cargo::rustc-env=TAQ_PLUGIN_RUSTC={}", version.trim());
    println!("cargo::rustc-env=TAQ_PLUGIN_TARGET={}", std::env::var("TARGET").unwrap_or_default());
}
