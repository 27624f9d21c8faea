//! Compiled modules and components, kept by content in a private folder.
//!
//! Machine code is loaded from nowhere else: not from beside a module, not from a path that anybody names. A file
//! holds a hash of the machine code and the machine code; a damaged one is compiled anew. Where there is no home or
//! it cannot be written, every run compiles. What was not used for longest goes when there is too much.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io};

use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::call::Guest;
use super::gate::Format;
use super::limits::{CACHE_BYTES, CACHE_FILES};
use crate::artifacts::{TEMPORARY_PREFIX, atomic_write_bytes};

const HASH: usize = 32;
const ENDING: &str = "cwasm";

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
    let name = format!("{}-{:016x}.{ENDING}", &blake3::hash(wasm).to_hex()[..32], settings.finish());
    folder.join(name)
}

/// What was compiled earlier, if it is there and whole.
pub(super) fn load(folder: &Path, engine: &Engine, wasm: &[u8], format: Format) -> Option<Guest> {
    if !is_private(folder) {
        return None;
    }
    let path = path(folder, engine, wasm);
    let bytes = fs::read(&path).ok()?;
    let (hash, code) = bytes.split_at_checked(HASH)?;
    if blake3::hash(code).as_bytes() != hash {
        return None;
    }
    let guest = deserialize(engine, code, format)?;
    // For `prune`. If it fails, this one goes earlier than it should.
    let _ =
        fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
    Some(guest)
}

#[allow(unsafe_code, reason = "machine code has no other way in")]
fn deserialize(engine: &Engine, code: &[u8], format: Format) -> Option<Guest> {
    // SAFETY: the bytes are what `serialize` gave to `store`: they come from a folder that only this user can write,
    // and their hash is right. wasmtime refuses those of another version, other settings or the other format.
    unsafe {
        match format {
            Format::Module => Module::deserialize(engine, code).map(Guest::Module),
            Format::Component => Component::deserialize(engine, code).map(Guest::Component),
        }
    }
    .ok()
}

/// Keeps what was compiled, and makes room for it.
pub(super) fn store(folder: &Path, engine: &Engine, wasm: &[u8], guest: &Guest) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    if !is_private(folder) {
        return Err(io::Error::other("others may write to it"));
    }
    let code = match guest {
        Guest::Module(module) => module.serialize(),
        Guest::Component(component) => component.serialize(),
    };
    let code = code.map_err(io::Error::other)?;
    let bytes = [blake3::hash(&code).as_bytes(), code.as_slice()].concat();
    atomic_write_bytes(&path(folder, engine, wasm), &bytes).map_err(io::Error::other)?;
    prune(folder, CACHE_FILES, CACHE_BYTES)
}

/// Removes what was not used for longest until what is left is few and small enough. The newest stays whatever its
/// size. What a killed writer left behind counts too; other files are not touched.
fn prune(folder: &Path, most: usize, most_bytes: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // One that another process has just removed is no concern.
        let ours = path.extension().is_some_and(|e| e == ENDING)
            || path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(TEMPORARY_PREFIX));
        if let (true, Ok(metadata)) = (ours, fs::symlink_metadata(&path)) {
            files.push((metadata.modified()?, metadata.len(), path));
        }
    }
    files.sort();
    let mut bytes = 0;
    for (at, (_, size, path)) in files.iter().rev().enumerate() {
        bytes += size;
        if at > 0 && (at >= most || bytes > most_bytes) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
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

    fn compiled(text: &str) -> (Vec<u8>, Guest) {
        let wasm = wat::parse_str(text).unwrap();
        let guest = match Format::of(&wasm).unwrap() {
            Format::Module => Guest::Module(Module::new(engine().unwrap(), &wasm).unwrap()),
            Format::Component => Guest::Component(Component::new(engine().unwrap(), &wasm).unwrap()),
        };
        (wasm, guest)
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() {
        for (text, format) in [
            (r#"(module (func (export "f")))"#, Format::Module),
            (r#"(component (core module (func (export "f"))))"#, Format::Component),
        ] {
            comes_back(text, format);
        }
    }

    fn comes_back(text: &str, format: Format) {
        let engine = engine().unwrap();
        let (wasm, guest) = compiled(text);
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("policies");
        let load = |folder: &Path| load(folder, engine, &wasm, format);
        assert!(load(&folder).is_none());
        store(&folder, engine, &wasm, &guest).unwrap();
        assert!(load(&folder).is_some());
        let other = if format == Format::Module { Format::Component } else { Format::Module };
        assert!(super::load(&folder, engine, &wasm, other).is_none());

        let file = path(&folder, engine, &wasm);
        let whole = fs::read(&file).unwrap();
        for damage in [&whole[..20], &whole[..whole.len() - 1], b""] {
            fs::write(&file, damage).unwrap();
            assert!(load(&folder).is_none(), "{} bytes", damage.len());
        }
        let mut flipped = whole.clone();
        flipped[HASH + 100] ^= 1;
        fs::write(&file, flipped).unwrap();
        assert!(load(&folder).is_none());
        fs::write(&file, &whole).unwrap();
        assert!(load(&folder).is_some());
    }

    #[test]
    fn what_was_used_last_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let write = |name: &str, bytes: usize, age: u64| {
            fs::write(folder.join(name), vec![0; bytes]).unwrap();
            let file = fs::File::options().append(true).open(folder.join(name)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        };
        let left = || {
            let mut names: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names.join(" ")
        };
        for (age, name) in ["a.cwasm", "b.cwasm", "c.cwasm", ".tmp-d", "notes.txt"].into_iter().enumerate() {
            write(name, 100, 1000 * age as u64);
        }
        prune(folder, 4, 400).unwrap();
        assert_eq!(left(), ".tmp-d a.cwasm b.cwasm c.cwasm notes.txt");
        prune(folder, 3, 1000).unwrap();
        assert_eq!(left(), "a.cwasm b.cwasm c.cwasm notes.txt");
        prune(folder, 3, 299).unwrap();
        assert_eq!(left(), "a.cwasm b.cwasm notes.txt");
        // Larger than everything together may be: it was only just written, and is wanted.
        prune(folder, 3, 10).unwrap();
        assert_eq!(left(), "a.cwasm notes.txt");
        prune(folder, 0, 0).unwrap();
        assert_eq!(left(), "a.cwasm notes.txt");
    }

    #[test]
    fn what_is_used_gets_young_again() {
        let engine = engine().unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("policies");
        let old = SystemTime::now() - std::time::Duration::from_secs(5000);
        let mut all = Vec::new();
        for name in ["f", "g"] {
            let (wasm, guest) = compiled(&format!(r#"(module (func (export "{name}")))"#));
            store(&folder, engine, &wasm, &guest).unwrap();
            let file = fs::File::options().append(true).open(path(&folder, engine, &wasm)).unwrap();
            file.set_modified(old).unwrap();
            all.push(wasm);
        }
        assert!(load(&folder, engine, &all[0], Format::Module).is_some());
        prune(&folder, 1, u64::MAX).unwrap();
        assert!(path(&folder, engine, &all[0]).exists());
        assert!(!path(&folder, engine, &all[1]).exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let engine = engine().unwrap();
        let (wasm, guest) = compiled("(module)");
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("policies");
        store(&folder, engine, &wasm, &guest).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(load(&folder, engine, &wasm, Format::Module).is_none());
        assert!(store(&folder, engine, &wasm, &guest).is_err());
    }
}
