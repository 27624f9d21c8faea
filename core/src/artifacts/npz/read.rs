//! Reading npz files.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind, Read};
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use ndarray_npy::npy::header::{Header, Layout, ReadHeaderError};
use zip::ZipArchive;
use zip::result::ZipError;

use super::element::dtype_name;
use super::{Element, KIND};
use crate::{Error, Result};

/// Bytes decoded at a time; a multiple of every element's size.
const CHUNK: usize = 1 << 16;

/// An npy header is a short Python dict; the parser recurses with its brackets, so their number is limited.
const HEADER_LIMIT: usize = 1 << 16;
const BRACKET_LIMIT: usize = 64;

/// An array as read: its shape, and its elements in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored<T> {
    /// Empty for a scalar.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub data: Vec<T>,
}

/// An open npz file.
pub struct Npz {
    path: PathBuf,
    zip: RefCell<ZipArchive<BufReader<File>>>,
}

impl std::fmt::Debug for Npz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Npz").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Npz {
    /// Opens a file and reads the table of its arrays.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is no zip archive or was cut off.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| match e {
            ZipError::Io(e) if !is_content(&e) => Error::io("read", path)(e),
            other => Error::malformed(KIND, path, format!("no zip archive, or cut off: {other}")),
        })?;
        Ok(Self { path: path.to_owned(), zip: RefCell::new(zip) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the arrays, sorted.
    pub fn names(&self) -> Vec<String> {
        let zip = self.zip.borrow();
        let mut names: Vec<String> =
            zip.file_names().map(|n| n.strip_suffix(".npy").unwrap_or(n).to_owned()).collect();
        names.sort();
        names
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.zip.borrow().index_for_name(&format!("{name}.npy")).is_some()
    }

    /// The array of this name, whatever its shape.
    ///
    /// # Errors
    /// [`Error::Malformed`] with file and array if it is missing, damaged, or of another type.
    pub fn read<T: Element>(&self, name: &str) -> Result<Stored<T>> {
        self.with_entry(name, |header, size, reader| {
            let found = descr(&header);
            if found != T::DESCR {
                return Err(self.wrong(name, format!("expected {}, found {}", T::DTYPE, dtype_name(&found))));
            }
            self.decode(name, header, size, reader)
        })
    }

    /// The elements of an array that must have this shape.
    ///
    /// # Errors
    /// As [`Self::read`]; also if the shape is another.
    pub fn vec<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        let stored = self.read(name)?;
        if stored.shape != shape {
            return Err(self.wrong(name, format!("expected shape {shape:?}, found {:?}", stored.shape)));
        }
        Ok(stored.data)
    }

    /// The value of an array without dimensions.
    ///
    /// # Errors
    /// As [`Self::vec`].
    pub fn scalar<T: Element>(&self, name: &str) -> Result<T> {
        let values = self.vec(name, &[])?;
        values.first().copied().ok_or_else(|| self.wrong(name, "expected a scalar, found nothing".into()))
    }

    /// numpy's name of an array's type, such as `<f4`.
    pub(super) fn descr(&self, name: &str) -> Result<String> {
        self.with_entry(name, |header, _, _| Ok(descr(&header)))
    }

    pub(super) fn wrong(&self, name: &str, reason: String) -> Error {
        Error::malformed(KIND, &self.path, format!("array `{name}`: {reason}"))
    }

    /// Calls `then` with an array's header, the number of bytes behind it and a reader that stands there.
    fn with_entry<R>(
        &self,
        name: &str,
        then: impl FnOnce(Header, u64, &mut dyn Read) -> Result<R>,
    ) -> Result<R> {
        if !self.contains(name) {
            let reason = format!("no array `{name}`; it has {}", list(&self.names()));
            return Err(Error::malformed(KIND, &self.path, reason));
        }
        let mut zip = self.zip.borrow_mut();
        let mut entry = zip.by_name(&format!("{name}.npy")).map_err(|e| match e {
            ZipError::Io(e) => self.unreadable(name, e),
            other => self.wrong(name, other.to_string()),
        })?;
        let size = entry.size();
        let head = read_head(&mut entry).map_err(|e| self.unreadable(name, e))?;
        let rest = size.saturating_sub(head.len() as u64);
        let header = Header::from_reader(&mut Cursor::new(head)).map_err(|e| match e {
            ReadHeaderError::Io(e) => self.unreadable(name, e),
            ReadHeaderError::Parse(e) => self.wrong(name, format!("npy header: {e}")),
        })?;
        then(header, rest, &mut entry)
    }

    fn decode<T: Element>(
        &self,
        name: &str,
        header: Header,
        size: u64,
        reader: &mut dyn Read,
    ) -> Result<Stored<T>> {
        let shape = header.shape;
        let length = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = length.and_then(|n| n.checked_mul(size_of::<T>()));
        let (Some(length), Some(bytes)) = (length, bytes) else {
            return Err(self.wrong(name, format!("shape {shape:?} is too large")));
        };
        if bytes as u64 != size {
            return Err(self.wrong(name, format!("shape {shape:?} needs {bytes} bytes, found {size}")));
        }
        let mut data = Vec::new();
        data.try_reserve_exact(length)
            .map_err(|_| self.wrong(name, format!("{bytes} bytes do not fit the memory")))?;
        let mut buffer = [0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK)];
            reader.read_exact(chunk).map_err(|e| self.unreadable(name, e))?;
            T::decode(chunk, &mut data)
                .map_err(|byte| self.wrong(name, format!("byte {byte} is no {}", T::DTYPE)))?;
            left -= chunk.len();
        }
        // Only a read at the end makes the archive compare checksums.
        reader.read(&mut buffer[..1]).map_err(|e| self.unreadable(name, e))?;
        let data = match header.layout {
            Layout::Standard => data,
            Layout::Fortran => row_major(&shape, data).map_err(|e| self.wrong(name, e))?,
        };
        Ok(Stored { shape, data })
    }

    /// What a failed read means: the content is damaged, or the disk is.
    fn unreadable(&self, name: &str, error: std::io::Error) -> Error {
        if is_content(&error) {
            self.wrong(name, format!("damaged or cut off: {error}"))
        } else {
            Error::io("read", &self.path)(error)
        }
    }
}

/// Whether the content is at fault: what the system reports has its error number.
fn is_content(error: &std::io::Error) -> bool {
    error.raw_os_error().is_none()
}

/// The bytes of an npy header: magic, version, length, dict.
fn read_head(reader: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let invalid = |reason: &str| std::io::Error::new(ErrorKind::InvalidData, format!("npy header: {reason}"));
    let mut head = vec![0; 8];
    reader.read_exact(&mut head)?;
    let wide = head[6] >= 2;
    head.resize(if wide { 12 } else { 10 }, 0);
    reader.read_exact(&mut head[8..])?;
    let length = match (wide, &head[8..]) {
        (true, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
        (_, rest) => usize::from(rest[0]) + 256 * usize::from(rest[1]),
    };
    if length > HEADER_LIMIT {
        return Err(invalid("too long"));
    }
    let start = head.len();
    head.resize(start + length, 0);
    reader.read_exact(&mut head[start..])?;
    if head[start..].iter().filter(|b| b"([{".contains(b)).count() > BRACKET_LIMIT {
        return Err(invalid("too many brackets"));
    }
    Ok(head)
}

fn descr(header: &Header) -> String {
    match header.type_descriptor.as_string() {
        Some(text) => text.clone(),
        None => header.type_descriptor.to_string(),
    }
}

fn row_major<T: Element>(shape: &[usize], data: Vec<T>) -> Result<Vec<T>, String> {
    let array = ArrayD::from_shape_vec(IxDyn(shape).f(), data).map_err(|e| e.to_string())?;
    Ok(array.iter().copied().collect())
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text: Vec<String> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    if names.len() > SHOWN {
        text.push(format!("… and {} more", names.len() - SHOWN));
    }
    text.join(", ")
}
