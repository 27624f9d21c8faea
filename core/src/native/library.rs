//! A library: from a path to plugins.

use std::path::{Path, PathBuf};

use taq_plugin::abi::{Buf, Decl, ENTRY_SYMBOL, Entry, HostApi, STAMP_SYMBOL, Stamp};
use taq_plugin::view;

use super::call::{Call, Speaker, bytes};
use super::declared::{Declared, NativeItem};
use super::stamp::{self, StampFacts};
use super::{declared, memory};
use crate::wasm::shown;
use crate::{Error, Result};

/// Bytes of a library's file, which is read whole.
const LIBRARY_BYTES: u64 = 1 << 30;

/// A loaded library. It stays loaded as long as the process.
pub struct Library {
    path: PathBuf,
    hash: String,
    facts: StampFacts,
    name: String,
    version: String,
    items: Vec<NativeItem>,
}

/// What a library's file says of it, before any code of it runs.
pub(crate) struct Inspected {
    /// The file, absolute.
    pub path: PathBuf,
    /// BLAKE3 of it.
    pub hash: String,
    stamp: Stamp,
}

/// Looks at a library's file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Native`] if it is no plugin for this program.
pub(crate) fn inspect(path: &Path) -> Result<Inspected> {
    let path = path.canonicalize().map_err(Error::io("read", path))?;
    let failed = |reason: String| Error::Native { path: path.clone(), reason };
    if !path.is_file() {
        return Err(failed("it is no regular file".into()));
    }
    let length = path.metadata().map_err(Error::io("read", &path))?.len();
    if length > LIBRARY_BYTES {
        return Err(failed(format!("it is {length} bytes long; at most {LIBRARY_BYTES} are taken")));
    }
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let stamp = stamp::read(&bytes).map_err(failed)?;
    let hash = blake3::hash(&bytes).to_hex().to_string();
    Ok(Inspected { path, hash, stamp })
}

impl Library {
    /// Checks a library's file, loads it, and reads what it declares.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Native`] with what is wrong with it.
    pub fn load(path: &Path) -> Result<&'static Self> {
        Self::of(inspect(path)?)
    }

    pub(crate) fn of(file: Inspected) -> Result<&'static Self> {
        let Inspected { path, hash, stamp } = file;
        let facts = StampFacts::of(&stamp);
        let Declared { name, version, items } =
            open(&path, &stamp).map_err(|reason| Error::Native { path: path.clone(), reason })?;
        if facts.compiler.starts_with("rustc") && !facts.unwinds {
            tracing::warn!(
                "plugin `{}` is built with panic = \"abort\": a panic in it ends the program",
                path.display()
            );
        }
        tracing::debug!(
            abi = facts.abi,
            sdk = facts.sdk,
            "loaded {name} {version} from `{}`",
            path.display()
        );
        // Its plugins are referred to from everywhere, and its code is never unloaded.
        Ok(Box::leak(Box::new(Self { path, hash, facts, name, version, items })))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// BLAKE3 of the file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What its stamp says.
    pub fn facts(&self) -> &StampFacts {
        &self.facts
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its plugins.
    pub fn items(&self) -> &[NativeItem] {
        &self.items
    }
}

/// Loads the library and calls its entry. The error is a sentence for the user.
fn open(path: &Path, expected: &Stamp) -> Result<Declared, String> {
    // Never closed: its code may be on some thread's stack, and what it declares must stay.
    let library = std::mem::ManuallyDrop::new(dlopen(path)?);
    // SAFETY: a symbol of the stamp's type, as the file said.
    let stamp = unsafe { library.get::<*const Stamp>(STAMP_SYMBOL.as_bytes()) };
    let stamp = stamp.map_err(|e| format!("its stamp is gone: {}", shown(e.to_string().as_bytes())))?;
    if !stamp.is_aligned() || !memory::is_mapped((*stamp).cast(), size_of::<Stamp>()) {
        return Err("its stamp points nowhere".into());
    }
    // SAFETY: there is aligned memory of that length.
    if unsafe { **stamp } != *expected {
        return Err("its stamp is another one in memory than in the file".into());
    }
    // SAFETY: the stamp says that the symbol is an entry of this ABI.
    let entry = unsafe { library.get::<Entry>(ENTRY_SYMBOL.as_bytes()) }
        .map_err(|_| format!("it has no function {ENTRY_SYMBOL}"))?;
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let speaker: &'static Speaker = Box::leak(Box::new(Speaker::new(&shown(name.as_bytes()))));
    let call: &'static Call<'static> = Box::leak(Box::new(Call::new(speaker, None, 0)));
    let host: &'static HostApi = Box::leak(Box::new(call.api()));
    let mut error = Buf::empty();
    // SAFETY: as the ABI says; the table lives as long as the process.
    let decl: *const Decl = unsafe { entry(host, &mut error) };
    let said = bytes(error, view::MESSAGE_BYTES);
    if decl.is_null() {
        let said = said.filter(|s| !s.is_empty());
        let said = said.map_or_else(|| "it does not say why".into(), |s| view::message(&s));
        return Err(format!("it declares nothing: {}", shown(said.as_bytes())));
    }
    declared::read(decl, path)
}

#[cfg(unix)]
fn dlopen(path: &Path) -> Result<libloading::Library, String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // Its names stay its own, and a function that is missing is missing now rather than in the middle of the work.
    // SAFETY: initialisers of the library run here. The stamp says that it is a plugin, and the user named it.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    library.map(Into::into).map_err(unloadable)
}

#[cfg(not(unix))]
fn dlopen(path: &Path) -> Result<libloading::Library, String> {
    // SAFETY: initialisers of the library run here. The stamp says that it is a plugin, and the user named it.
    unsafe { libloading::Library::new(path) }.map_err(unloadable)
}

fn unloadable(error: libloading::Error) -> String {
    let reason = match &error {
        libloading::Error::DlOpen { desc } => format!("{desc:?}"),
        other => other.to_string(),
    };
    format!("it cannot be loaded: {}", shown(reason.trim_matches('"').as_bytes()))
}
