//! Compiles the C++ side of host kernels against the headers mlx-sys was built with.

use std::{env, process::exit};

fn main() {
    println!("cargo::rerun-if-changed=csrc");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_MLX_INCLUDE");
    let Some(include) = env::var_os("DEP_MLX_INCLUDE") else {
        eprintln!("error: mlx-sys published no include path; is the patch of mlx-sys in place?");
        exit(1);
    };
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).debug(false).warnings(true);
    for folder in env::split_paths(&include) {
        build.flag("-isystem").flag(folder);
    }
    build.include("csrc").file("csrc/host_kernel.cpp");
    if let Err(error) = build.try_compile("taq_host_kernel") {
        eprintln!("error: the host-kernel interface does not compile: {error}");
        exit(1);
    }
}
