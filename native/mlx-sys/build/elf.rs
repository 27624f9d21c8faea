//! Reads the names that a 64-bit little-endian ELF library exports.
//!
//! Field offsets are those of the System V ABI, chapters "ELF header",
//! "Sections" and "Symbol table".

use std::{fs, path::Path};

use crate::{error::Result, fail};

const SHT_DYNSYM: u32 = 11;
const STT_OBJECT: u8 = 1;
const STT_TLS: u8 = 6;
const STT_GNU_IFUNC: u8 = 10;

/// An exported name.
pub struct Symbol {
    pub name: String,
    pub is_data: bool,
}

/// The defined global names of the library, without thread-local ones.
pub fn exports(library: &Path) -> Result<Vec<Symbol>> {
    let bytes = fs::read(library).map_err(|e| fail!("cannot read {}: {e}", library.display()))?;
    parse(&bytes).ok_or_else(|| fail!("{} is not a 64-bit ELF library", library.display()))
}

fn parse(bytes: &[u8]) -> Option<Vec<Symbol>> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = usize::try_from(u64_at(bytes, 0x28)?).ok()?;
    let header_size = usize::from(u16_at(bytes, 0x3A)?);
    let section = |index: usize| {
        let start = headers.checked_add(index.checked_mul(header_size)?)?;
        bytes.get(start..start.checked_add(64)?)
    };
    let contents = |header: &[u8]| {
        let start = usize::try_from(u64_at(header, 0x18)?).ok()?;
        let size = usize::try_from(u64_at(header, 0x20)?).ok()?;
        bytes.get(start..start.checked_add(size)?)
    };
    let count = usize::from(u16_at(bytes, 0x3C)?);
    let dynsym = (0..count).filter_map(section).find(|h| u32_at(h, 4) == Some(SHT_DYNSYM))?;
    let strings = contents(section(u32_at(dynsym, 0x28)? as usize)?)?;
    let mut symbols = Vec::new();
    for entry in contents(dynsym)?.chunks_exact(24) {
        let (binding, kind) = (entry[4] >> 4, entry[4] & 0xF);
        let visibility = entry[5] & 3;
        let defined = u16_at(entry, 6)? != 0;
        let code_or_data = kind <= 2 || kind == STT_GNU_IFUNC;
        if !defined || binding == 0 || visibility != 0 || !code_or_data || kind == STT_TLS {
            continue;
        }
        let name = strings.get(u32_at(entry, 0)? as usize..)?.split(|&b| b == 0).next()?;
        let name = std::str::from_utf8(name).ok()?.to_owned();
        symbols.push(Symbol { name, is_data: kind == STT_OBJECT });
    }
    Some(symbols)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
