//! Which MLX library to build against: the variable `TAQ_MLX`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::{error::Result, fail, pins, platform::Platform, wheel};

/// An MLX library with its headers.
pub struct Mlx {
    /// `cpu`, `cuda12`, `cuda13`, `metal` or `path`.
    pub name: &'static str,
    pub version: String,
    pub include: PathBuf,
    pub library: PathBuf,
}

/// The library that `TAQ_MLX` names, or the default of the platform.
pub fn locate(platform: &Platform) -> Result<Mlx> {
    let default = if platform.is_mac() { "metal" } else { "cpu" };
    let choice = env::var_os("TAQ_MLX").filter(|value| !value.is_empty()).unwrap_or_else(|| default.into());
    let (name, package) = match (choice.to_str(), platform.is_mac()) {
        (Some("cpu"), false) => ("cpu", "mlx-cpu"),
        (Some("cuda12"), false) => ("cuda12", "mlx-cuda-12"),
        (Some("cuda13"), false) => ("cuda13", "mlx-cuda-13"),
        (Some("metal"), true) => ("metal", "mlx-metal"),
        _ if Path::new(&choice).is_absolute() => return existing(platform, Path::new(&choice)),
        (_, mac) => {
            let names = if mac { "`metal`" } else { "`cpu`, `cuda12`, `cuda13`" };
            return Err(fail!(
                "TAQ_MLX={} is not one of {names} or the absolute path of an MLX folder \
                 (one that holds lib/{} and include/mlx)",
                choice.display(),
                platform.mlx_file()
            ));
        }
    };
    let folder = wheel::unpacked(package, *platform, wheel::Use::Runtime)?.join("mlx");
    in_folder(platform, &folder, name)
}

fn existing(platform: &Platform, folder: &Path) -> Result<Mlx> {
    let mlx = in_folder(platform, folder, "path")?;
    if mlx.version != pins::MLX_VERSION {
        println!(
            "cargo::warning=TAQ_MLX points to MLX {}; taq is tested with {}",
            mlx.version,
            pins::MLX_VERSION
        );
    }
    Ok(mlx)
}

fn in_folder(platform: &Platform, folder: &Path, name: &'static str) -> Result<Mlx> {
    let library = folder.join("lib").join(platform.mlx_file());
    let include = folder.join("include");
    for needed in [&library, &include.join("mlx/mlx.h")] {
        if !needed.is_file() {
            return Err(fail!(
                "{} is not an MLX folder: {} is missing; set TAQ_MLX to a folder that holds \
                 lib/{} and include/mlx, or remove the folder if it is taq's own cache",
                folder.display(),
                needed.display(),
                platform.mlx_file()
            ));
        }
    }
    // A deleted library makes the build script run again.
    println!("cargo::rerun-if-changed={}", library.display());
    let version = version(&include).unwrap_or_else(|| "unknown".into());
    Ok(Mlx { name, version, include, library })
}

/// The version that the headers state.
fn version(include: &Path) -> Option<String> {
    let text = fs::read_to_string(include.join("mlx/version.h")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.contains(name) && line.starts_with("#define"))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    };
    let part = |name| field(&format!("MLX_VERSION_{name} "));
    Some([part("MAJOR")?, part("MINOR")?, part("PATCH")?].join("."))
}
