//! Native libraries for tests: those that were built in Rust, and C compiled on the spot.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::paths::repository;

/// A library in Rust that this package depends on, by the name of its crate.
pub fn rust(name: &str) -> PathBuf {
    let folder = std::env::current_exe().expect("a test is a program");
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = folder.parent().expect("a folder").join(file);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// `tests/fixtures/native/plugin.c` with these switches (`NAME`, `NAME=value`), compiled into a folder.
pub fn c(folder: &Path, switches: &[&str]) -> PathBuf {
    let name = if switches.is_empty() { "good".to_owned() } else { switches.join("-") };
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let library = folder.join(format!("lib{name}{}", std::env::consts::DLL_SUFFIX));
    let output = Command::new(std::env::var("CC").unwrap_or("cc".into()))
        .args(["-std=c11", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"])
        // What is wrong on purpose may leave something unused.
        .args((!switches.is_empty()).then_some("-Wno-unused"))
        .args(switches.iter().map(|s| format!("-D{s}")))
        .arg("-I")
        .arg(repository().join("sdk/native/include"))
        .arg("-o")
        .arg(&library)
        .arg(repository().join("tests/fixtures/native/plugin.c"))
        .arg("-lm")
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{switches:?}: {}", String::from_utf8_lossy(&output.stderr));
    library
}
