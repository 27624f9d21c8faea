//! Native libraries: those of the flags, and those that lie in the folders of `TAQ_PLUGINS`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use taq_core::registry::Registry;
use taq_core::{Error, Result};

/// Environment variable with folders of libraries, separated as those of `PATH`.
const VARIABLE: &str = "TAQ_PLUGINS";

/// Loads the libraries that were named, then those of the folders.
///
/// # Errors
/// Of a library that was named, or of a folder that cannot be read. A library of a folder that is of no use is told and left
/// out: it must not stand in the way of what does not need it.
pub(super) fn load(registry: &mut Registry, named: &[PathBuf]) -> Result<()> {
    for path in named {
        registry.load(path)?;
    }
    let folders = std::env::var_os(VARIABLE).unwrap_or_default();
    for folder in std::env::split_paths(&folders).filter(|f| !f.as_os_str().is_empty()) {
        for path in libraries(&folder)? {
            if let Err(error) = registry.load(&path) {
                tracing::warn!("{VARIABLE}: {error}; it is left out");
            }
        }
    }
    Ok(())
}

/// The shared libraries of a folder, sorted by name.
fn libraries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.extension() == Some(OsStr::new(std::env::consts::DLL_EXTENSION)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
