//! A fast BLAS in front of the reference BLAS that Linux MLX wheels bring along.
//!
//! libmlx imports `cblas_sgemm`, `cblas_dgemm` and `cblas_cgemm` from a
//! reference implementation. Programs also load `libtaq_runtime`, which exports
//! the same names and forwards to OpenBLAS. It is a direct dependency of the
//! program and the reference BLAS an indirect one, so the loader finds ours
//! first (breadth-first search order, ELF gABI "Shared Object Dependencies").

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{cache, error::Result, fail, link, mlx_c, pins, platform::Platform, wheel};

const SOURCE: &str = "csrc/runtime.c";

/// Links the forwarder where one is needed; returns the name of the BLAS in use.
pub fn link(platform: &Platform, out: &Path) -> Result<String> {
    if platform.is_mac() {
        return Ok("Accelerate".into());
    }
    let package = "scipy-openblas32";
    let folder = wheel::unpacked(package, *platform, wheel::Use::Runtime)?.join("scipy_openblas32/lib");
    let library = forwarder(&folder)?;
    println!("cargo::rerun-if-changed={}", library.display());
    link::stand_in("taq_runtime", &library, out)?;
    let version = pins::find(package, *platform).map_or("", |pin| pin.version);
    let version: Vec<&str> = version.split('.').take(3).collect();
    Ok(format!("OpenBLAS {}", version.join(".")))
}

/// The compiled forwarder, beside OpenBLAS; its name changes with its source.
fn forwarder(folder: &Path) -> Result<PathBuf> {
    let source = fs::read(SOURCE).map_err(|e| fail!("cannot read {SOURCE}: {e}"))?;
    let library = folder.join(format!("libtaq_runtime-{:016x}.so", fnv1a(&source)));
    if library.is_file() {
        return Ok(library);
    }
    let temporary = cache::temporary(&library);
    let mut compile = mlx_c::quiet().opt_level(2).debug(false).get_compiler().to_command();
    compile.args(["-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]).arg(SOURCE);
    link::run(compile.arg("-o").arg(&temporary).args(["-ldl"]))?;
    fs::rename(&temporary, &library).map_err(|e| fail!("cannot write {}: {e}", library.display()))?;
    Ok(library)
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
