//! A file's bytes without reading them all: a read-only memory map behind a safe constructor.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// The bytes of a file, mapped for reading.
///
/// The file must not be changed or cut while the map lives: weight files are written once. A file that shrinks
/// under the map ends the process with a signal when the lost part is touched.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the whole file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::of(&File::open(path)?)
    }

    /// Maps the whole of an open file, which may be closed afterwards.
    pub fn of(file: &File) -> io::Result<Self> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is read-only and private to this value, and it only hands out `&[u8]`, for which any
        // byte is valid. What remains is that nobody may write to the file meanwhile; the type's documentation
        // asks for that, as every reader of mapped weight files does.
        unsafe { Mmap::map(file) }.map(Self)
    }

    /// Gives back the memory that holds what was read of the file so far: it is no longer counted as the process's, and
    /// comes from the file (or the system's cache of it) when it is read again. Best effort, on Unix only.
    pub fn forget(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and backed by a file, so that dropped pages come back with the same bytes.
            let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_what_the_file_holds() {
        let this = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
        assert_eq!(&*Mapped::open(&this).unwrap(), std::fs::read(&this).unwrap());
    }

    #[test]
    fn what_was_forgotten_is_read_again() {
        let this = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
        let mapped = Mapped::open(&this).unwrap();
        let before = mapped.to_vec();
        mapped.forget();
        assert_eq!(&*mapped, before);
    }

    #[test]
    fn refuses_folders_and_missing_files() {
        assert!(Mapped::open(env!("CARGO_MANIFEST_DIR")).is_err());
        assert!(Mapped::open("no-such-file").is_err());
    }
}
