//! Compiles mlx-c, the C interface to MLX, into a static library.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{backend::Mlx, error::Result, fail};

/// Fails early, with one sentence, where there is no C++ compiler.
pub fn check_compiler() -> Result<()> {
    let missing = |language: &str, e: cc::Error| {
        fail!(
            "no {language} compiler ({e}); install g++ or clang (Debian: apt install g++; macOS: xcode-select --install), or set CXX and CC"
        )
    };
    let compiler = quiet().cpp(true).try_get_compiler().map_err(|e| missing("C++", e))?;
    let run = compiler.to_command().arg("--version").output();
    if !run.is_ok_and(|output| output.status.success()) {
        return Err(fail!(
            "the C++ compiler {} does not run; install g++ or clang (Debian: apt install g++; macOS: xcode-select --install), or set CXX",
            compiler.path().display()
        ));
    }
    quiet().try_get_compiler().map_err(|e| missing("C", e)).map(drop)
}

/// A compiler to ask or to run by hand. Its settings are not announced to cargo: `compile` does.
pub fn quiet() -> cc::Build {
    let mut build = cc::Build::new();
    build.cargo_metadata(false);
    build
}

/// Compiles the sources in `mlx_c` and tells cargo to link them.
pub fn compile(mlx: &Mlx, mlx_c: &Path) -> Result<()> {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .debug(false)
        .warnings(false)
        .flag("-isystem")
        .flag(&mlx.include)
        .include(mlx_c)
        // std::format for standard libraries without it (gcc 12).
        .flag("-include")
        .flag(PathBuf::from("csrc/format.hpp"))
        .files(sources(&mlx_c.join("mlx/c"))?);
    build.try_compile("mlxc").map_err(|e| fail!("mlx-c does not compile: {e}"))
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| fail!("cannot read {}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "cpp"))
        .collect();
    files.sort();
    Ok(files)
}
