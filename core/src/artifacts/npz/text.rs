//! Arrays of strings, as numpy stores them: every string as wide as the longest, in UTF-32.

use std::io::Write;

use ndarray_npy::{WriteNpyError, WriteNpyExt};

use super::NpzWriter;
use crate::Result;

/// A one-dimensional array of numpy's type `<U…`.
struct Strings<'a>(&'a [String]);

impl WriteNpyExt for Strings<'_> {
    fn write_npy<W: Write>(&self, mut writer: W) -> Result<(), WriteNpyError> {
        let width = self.0.iter().map(|s| s.chars().count()).max().unwrap_or(0).max(1);
        let mut header =
            format!("{{'descr': '<U{width}', 'fortran_order': False, 'shape': ({},), }}", self.0.len());
        // Magic, version and length take 10 bytes; the data begin at a multiple of 64.
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        writer.write_all(b"\x93NUMPY\x01\x00")?;
        writer.write_all(&(header.len() as u16).to_le_bytes())?;
        writer.write_all(header.as_bytes())?;
        for string in self.0 {
            let padding = width - string.chars().count();
            for code in string.chars().map(u32::from).chain(std::iter::repeat_n(0, padding)) {
                writer.write_all(&code.to_le_bytes())?;
            }
        }
        Ok(writer.flush()?)
    }
}

impl NpzWriter<'_> {
    /// Adds a one-dimensional array of strings, numpy's type `<U…`. NULs at the end of a string are lost in
    /// numpy, as always.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn strings(&mut self, name: &str, strings: &[String]) -> Result<()> {
        self.entry(name, &Strings(strings), 0)
    }
}
