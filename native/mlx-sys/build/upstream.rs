//! Where cargo keeps the published mlx-sys package, whose mlx-c sources are compiled.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{error::Result, fail};

/// The mlx-c folder (the one that holds `mlx/c`) of the published package.
pub fn mlx_c_source() -> Result<PathBuf> {
    let manifest =
        Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("upstream/Cargo.toml");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version=1", "--manifest-path"])
        .arg(&manifest)
        .output()
        .map_err(|e| fail!("cannot run cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(fail!(
            "cannot fetch the mlx-c sources (package mlx-sys 0.7.0) with cargo; connect to the network or a mirror\n{}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        ));
    }
    let metadata = String::from_utf8_lossy(&output.stdout);
    metadata
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| Path::new(rest.split('"').next()?).parent())
        .map(|package| package.join("src/mlx-c"))
        .find(|folder| folder.join("mlx/c/mlx.h").is_file())
        .ok_or_else(|| fail!("the package mlx-sys 0.7.0 from crates.io holds no src/mlx-c"))
}
