//! Compiled modules, kept by content in a private folder.
//!
//! Machine code is loaded from nowhere else: not from beside a module, not from a path that anybody names. A file
//! holds a hash of the machine code and the machine code; a damaged one is compiled anew. Where there is no home or
//! it cannot be written, every run compiles.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use wasmtime::{Engine, Module};

use crate::artifacts::atomic_write_bytes;

const HASH: usize = 32;

/// `$XDG_CACHE_HOME/taq/policies`, else below the home folder.
pub(super) fn folder() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = cache.or_else(|| {
        let below = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        env::home_dir().filter(|h| h.is_absolute()).map(|h| h.join(below))
    })?;
    Some(cache.join("taq/policies"))
}

fn path(folder: &Path, engine: &Engine, wasm: &[u8]) -> PathBuf {
    use std::hash::{Hash, Hasher};
    // The engine's own: its version, its settings, and what this processor can do.
    let mut settings = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    let name = format!("{}-{:016x}.cwasm", &blake3::hash(wasm).to_hex()[..32], settings.finish());
    folder.join(name)
}

/// The module compiled earlier, if it is there and whole.
pub(super) fn load(folder: &Path, engine: &Engine, wasm: &[u8]) -> Option<Module> {
    if !is_private(folder) {
        return None;
    }
    let bytes = fs::read(path(folder, engine, wasm)).ok()?;
    let (hash, code) = bytes.split_at_checked(HASH)?;
    if blake3::hash(code).as_bytes() != hash {
        return None;
    }
    deserialize(engine, code)
}

#[allow(unsafe_code, reason = "machine code has no other way in")]
fn deserialize(engine: &Engine, code: &[u8]) -> Option<Module> {
    // SAFETY: the bytes are what `Module::serialize` gave to `store`: they come from a folder that only this user
    // can write, and their hash is right. wasmtime refuses those of another version or other settings.
    unsafe { Module::deserialize(engine, code) }.ok()
}

/// Keeps a compiled module.
pub(super) fn store(folder: &Path, engine: &Engine, wasm: &[u8], module: &Module) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    if !is_private(folder) {
        return Err(io::Error::other("others may write to it"));
    }
    let code = module.serialize().map_err(io::Error::other)?;
    let bytes = [blake3::hash(&code).as_bytes(), code.as_slice()].concat();
    atomic_write_bytes(&path(folder, engine, wasm), &bytes).map_err(io::Error::other)
}

/// Whether it is a folder that nobody but its owner can write to.
fn is_private(folder: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(folder) else { return false };
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o022 != 0 {
        return false;
    }
    metadata.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::compile::engine;

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() {
        let engine = engine().unwrap();
        let wasm = wat::parse_str("(module (func (export \"f\")))").unwrap();
        let module = Module::new(engine, &wasm).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("policies");
        assert!(load(&folder, engine, &wasm).is_none());
        store(&folder, engine, &wasm, &module).unwrap();
        assert!(load(&folder, engine, &wasm).is_some());

        let file = path(&folder, engine, &wasm);
        let whole = fs::read(&file).unwrap();
        for damage in [&whole[..20], &whole[..whole.len() - 1], b""] {
            fs::write(&file, damage).unwrap();
            assert!(load(&folder, engine, &wasm).is_none(), "{} bytes", damage.len());
        }
        let mut flipped = whole.clone();
        flipped[HASH + 100] ^= 1;
        fs::write(&file, flipped).unwrap();
        assert!(load(&folder, engine, &wasm).is_none());
        fs::write(&file, &whole).unwrap();
        assert!(load(&folder, engine, &wasm).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let engine = engine().unwrap();
        let wasm = wat::parse_str("(module)").unwrap();
        let module = Module::new(engine, &wasm).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("policies");
        store(&folder, engine, &wasm, &module).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(load(&folder, engine, &wasm).is_none());
        assert!(store(&folder, engine, &wasm, &module).is_err());
    }
}
