//! Writing npz files.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;

use ndarray::{ArrayViewD, IxDyn};
use ndarray_npy::{WriteNpyError, WriteNpyExt, WriteNpzError};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime};

use super::{Element, KIND};
use crate::artifacts::atomic::atomic_write;
use crate::{Error, Result};

/// Arrays from this size on need the 64-bit fields of the zip format.
const LARGE: usize = 0xfff0_0000;

/// Adds arrays to a file that [`write_npz`] has opened.
pub struct NpzWriter<'a> {
    path: &'a Path,
    zip: ndarray_npy::NpzWriter<Latched<'a>>,
}

/// Writes an npz file atomically: `fill` adds the arrays, and if it fails the old file stays. The same arrays in
/// the same order give the same bytes.
///
/// ```
/// # use taq_core::artifacts::{Npz, write_npz};
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("x.npz");
/// write_npz(&path, |npz| {
///     npz.add("weight", &[2, 3], &[0i8, 1, 2, 3, 4, 5])?;
///     npz.scalar("sigma", 0.5f32)
/// })?;
/// assert_eq!(Npz::open(&path)?.scalar::<f32>("sigma")?, 0.5);
/// # Ok::<_, taq_core::Error>(())
/// ```
pub fn write_npz(path: &Path, fill: impl FnOnce(&mut NpzWriter<'_>) -> Result<()>) -> Result<()> {
    atomic_write(path, |file| {
        let failure = Rc::default();
        let latched = Latched { file, failure: Rc::clone(&failure) };
        let zip = ndarray_npy::NpzWriter::new_with_options(latched, options(0));
        let mut npz = NpzWriter { path, zip };
        let filled = fill(&mut npz).and_then(|()| {
            npz.zip.finish().map_err(|e| failed(path, None, e))?;
            Ok(())
        });
        match Rc::into_inner(failure).and_then(OnceCell::into_inner) {
            Some(e) => Err(Error::io("write", path)(e)),
            None => filled,
        }
    })
}

/// Keeps the first failure to write and seems to go on: zip's writer, dropped after an error of its own, would
/// try again and print what happened to standard error.
struct Latched<'a> {
    file: &'a mut File,
    failure: Rc<OnceCell<io::Error>>,
}

impl Write for Latched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failure.get().is_none()
            && let Err(e) = self.file.write_all(bytes)
        {
            self.failure.get_or_init(|| e);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Latched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Stored, dated 1980: nothing in the file depends on when and where it is written.
fn options(bytes: usize) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .large_file(bytes >= LARGE)
}

impl NpzWriter<'_> {
    /// Adds an array with its elements in row-major order; the empty shape is a scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape does not have as many elements as `data`, [`Error::Malformed`] if the name
    /// is taken, [`Error::Io`] if the file cannot be written.
    pub fn add<T: Element>(&mut self, name: &str, shape: &[usize], data: &[T]) -> Result<()> {
        let view = ArrayViewD::from_shape(IxDyn(shape), data).map_err(|_| Error::Shape {
            what: format!("array `{name}` of `{}`", self.path.display()),
            expected: format!("{} elements for shape {shape:?}", shape.iter().product::<usize>()),
            found: vec![i32::try_from(data.len()).unwrap_or(i32::MAX)],
        })?;
        self.entry(name, &view, size_of_val(data))
    }

    /// Adds what writes itself as an npy file of about so many bytes.
    pub(super) fn entry(&mut self, name: &str, array: &impl WriteNpyExt, bytes: usize) -> Result<()> {
        self.zip
            .add_array_with_options(name, array, options(bytes))
            .map_err(|e| failed(self.path, Some(name), e))
    }

    /// Adds an array without dimensions.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn scalar<T: Element>(&mut self, name: &str, value: T) -> Result<()> {
        self.add(name, &[], &[value])
    }

    /// Where the file will be.
    pub(super) fn path(&self) -> &Path {
        self.path
    }
}

fn failed(path: &Path, array: Option<&str>, error: WriteNpzError) -> Error {
    match error {
        WriteNpzError::Zip(ZipError::Io(e)) | WriteNpzError::Npy(WriteNpyError::Io(e)) => {
            Error::io("write", path)(e)
        }
        other => match array {
            Some(name) => Error::malformed(KIND, path, format!("array `{name}`: {other}")),
            None => Error::malformed(KIND, path, other),
        },
    }
}
