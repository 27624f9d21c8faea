//! The folder that keeps unpacked wheels between builds.
//!
//! `build/` holds what only a build needs, `runtime/` what built programs load.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{error::Result, fail};

/// The cache folder: `TAQ_MLX_CACHE`, or the user's cache folder followed by `taq`.
pub fn root() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let home = |below: &str| set("HOME").map(|home| Path::new(&home).join(below));
    let root = set("TAQ_MLX_CACHE")
        .map(PathBuf::from)
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("taq")))
        .or_else(|| home(if cfg!(target_os = "macos") { "Library/Caches/taq" } else { ".cache/taq" }))
        .ok_or_else(|| fail!("no cache folder: set TAQ_MLX_CACHE (or HOME) to an absolute path"))?;
    if !root.is_absolute() {
        return Err(fail!("the cache folder {} is not an absolute path", root.display()));
    }
    Ok(root)
}

/// A neighbour of `path` that no other build uses.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

/// Makes the folder `path` with `fill` unless it exists. It appears whole or not at all,
/// and of several builds at once the first wins.
pub fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let unwritable = |e: io::Error| {
        fail!("cannot write {}: {e}; set TAQ_MLX_CACHE to a folder you may write to", path.display())
    };
    let temporary = temporary(path);
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary).map_err(unwritable)?;
    let done = fill(&temporary).and_then(|()| match fs::rename(&temporary, path) {
        Err(e) if !path.is_dir() => Err(unwritable(e)),
        _ => Ok(()),
    });
    let _ = fs::remove_dir_all(&temporary);
    done
}
