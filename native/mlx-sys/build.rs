//! Finds an MLX library, compiles mlx-c against it and generates the bindings.
//!
//! `native/README.md` describes the steps and the variables that steer them.

#[path = "build/backend.rs"]
mod backend;
#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/blas.rs"]
mod blas;
#[path = "build/cache.rs"]
mod cache;
#[path = "build/elf.rs"]
mod elf;
#[path = "build/error.rs"]
mod error;
#[path = "build/link.rs"]
mod link;
#[path = "build/mlx_c.rs"]
mod mlx_c;
#[path = "build/pins.rs"]
mod pins;
#[path = "build/platform.rs"]
mod platform;
#[path = "build/upstream.rs"]
mod upstream;
#[path = "build/wheel.rs"]
mod wheel;

use std::{env, path::PathBuf, process::exit};

use error::Result;

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn run() -> Result<()> {
    for name in ["TAQ_MLX", "TAQ_MLX_CACHE", "TAQ_MLX_RUNTIME", "XDG_CACHE_HOME", "LIBCLANG_PATH", "PYTHON"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for path in ["build.rs", "build", "csrc", "upstream"] {
        println!("cargo::rerun-if-changed={path}");
    }

    let platform = platform::Platform::of_target()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    mlx_c::check_compiler()?;

    let mlx = backend::locate(&platform)?;
    let mlx_c = upstream::mlx_c_source()?;
    mlx_c::compile(&mlx, &mlx_c)?;
    let blas = blas::link(&platform, &out)?;
    link::link_mlx(&platform, &mlx, &out)?;
    bindings::generate(&platform, &mlx_c, &out)?;

    let include = env::join_paths([&mlx.include, &mlx_c])
        .map_err(|_| fail!("the MLX or mlx-c folder has a `:` in its path"))?;
    println!("cargo::metadata=include={}", include.display());
    println!("cargo::metadata=lib={}", mlx.library.display());
    println!("cargo::metadata=backend={}", mlx.name);
    println!("cargo::metadata=version={}", mlx.version);
    println!("cargo::metadata=defines=");
    for (name, value) in
        [("TAQ_MLX_BACKEND", mlx.name), ("TAQ_MLX_VERSION", &*mlx.version), ("TAQ_MLX_BLAS", &*blas)]
    {
        println!("cargo::rustc-env={name}={value}");
    }
    Ok(())
}
