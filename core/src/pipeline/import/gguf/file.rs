//! The container: header, metadata, tensors (ggml's docs/gguf.md, versions 2 and 3).

use std::collections::BTreeMap;
use std::path::Path;

use crate::pipeline::export::gguf::{ALIGNMENT, Kind, Tensor};
use crate::{Error, Result};

/// ggml's types of tensors that are met in published files and that no grid of taq holds.
const OTHERS: [(u32, &str); 9] = [
    (2, "Q4_0"),
    (6, "Q5_0"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (20, "IQ4_NL"),
    (23, "IQ4_XS"),
];

/// Arrays in arrays of metadata deeper than this are refused.
const DEPTH: usize = 4;

/// A file's tensors by name.
pub(super) struct Gguf {
    pub(super) tensors: BTreeMap<String, Tensor>,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::parse(&bytes).map_err(|reason| Error::malformed("GGUF file", path, reason))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err("it does not begin with `GGUF`".into());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version}, expected 2 or 3"));
        }
        let (count, entries) = (reader.u64()?, reader.u64()?);
        let mut alignment = ALIGNMENT;
        for _ in 0..entries {
            let key = reader.string()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0)?;
            if let (true, Some(number)) = (key == "general.alignment", value) {
                alignment = usize::try_from(number).unwrap_or(0);
            }
        }
        if !alignment.is_power_of_two() {
            return Err(format!("general.alignment is {alignment}, expected a power of 2"));
        }
        let mut infos = Vec::new();
        for _ in 0..count {
            infos.push(reader.info()?);
        }
        let data = reader.at.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for Info { name, shape, kind, offset } in infos {
            let bytes = usize::try_from(offset).ok().and_then(|offset| {
                let start = data.checked_add(offset)?;
                bytes.get(start..start.checked_add(size(&shape, kind)?)?)
            });
            let bytes = bytes.ok_or_else(|| format!("tensor `{name}` reaches beyond the end of the file"))?;
            let tensor = Tensor { name: name.clone(), shape, kind, bytes: bytes.to_vec() };
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(format!("tensor `{name}` is there twice"));
            }
        }
        Ok(Self { tensors })
    }
}

/// Bytes of a tensor; `None` if that is no number of whole blocks, or more than there can be.
fn size(shape: &[usize], kind: Kind) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side))?;
    let per_block = kind.block_elements();
    if !elements.is_multiple_of(per_block) {
        return None;
    }
    (elements / per_block).checked_mul(kind.block_bytes())
}

struct Info {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
    offset: u64,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("it is cut short")?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "it is cut short".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String, String> {
        let length = usize::try_from(self.u64()?).map_err(|_| "it is cut short")?;
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| "a name is not UTF-8".into())
    }

    /// Passes a value of metadata; the number, if it is a u32.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<u32>, String> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4 => return self.u32().map(Some),
            5 | 6 => 4,
            10..=12 => 8,
            8 => {
                self.string()?;
                0
            }
            9 if depth < DEPTH => {
                let (element, count) = (self.u32()?, self.u64()?);
                for _ in 0..count {
                    self.value(element, depth + 1)?;
                }
                0
            }
            other => return Err(format!("metadata of type {other}, which is none")),
        };
        self.take(size)?;
        Ok(None)
    }

    fn info(&mut self) -> Result<Info, String> {
        let name = self.string()?;
        let sides = self.u32()?;
        if sides > 4 {
            return Err(format!("tensor `{name}` has {sides} sides, expected at most 4"));
        }
        let mut shape = Vec::new();
        for _ in 0..sides {
            shape.push(usize::try_from(self.u64()?).map_err(|_| format!("tensor `{name}` is too large"))?);
        }
        // ggml's innermost side comes first.
        shape.reverse();
        let number = self.u32()?;
        let kind = Kind::of(number).ok_or_else(|| {
            let known = OTHERS.iter().find(|(n, _)| *n == number);
            let kind = known.map_or_else(|| format!("type {number}"), |(_, name)| (*name).to_owned());
            format!("tensor `{name}` is {kind}, which no grid of taq holds; Q4_1, Q5_1 and Q8_0 can be read")
        })?;
        Ok(Info { name, shape, kind, offset: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::export::gguf::file;

    fn written() -> Vec<u8> {
        let tensor = |name: &str, shape: &[usize], kind: Kind| {
            let bytes = (0..size(shape, kind).unwrap()).map(|i| i as u8).collect();
            Tensor { name: name.into(), shape: shape.into(), kind, bytes }
        };
        file(&[
            tensor("pos_embed", &[1, 3, 2], Kind::F16),
            tensor("q", &[2, 64], Kind::Q4_1),
            tensor("v", &[5], Kind::F32),
        ])
    }

    #[test]
    fn what_is_written_is_read() {
        let tensors = Gguf::parse(&written()).unwrap().tensors;
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["pos_embed", "q", "v"]);
        let q = &tensors["q"];
        assert_eq!((q.shape.as_slice(), q.kind, q.bytes.len()), (&[2, 64][..], Kind::Q4_1, 80));
        assert!(q.bytes.iter().enumerate().all(|(i, b)| *b == i as u8));
        assert_eq!(tensors["pos_embed"].shape, [1, 3, 2]);
    }

    #[test]
    fn every_cut_and_every_wild_number_is_an_error() {
        let whole = written();
        let message = |bytes: &[u8]| Gguf::parse(bytes).err().unwrap_or_default();
        // The last tensor ends where the padding begins.
        for end in 0..whole.len() - 12 {
            assert!(!message(&whole[..end]).is_empty(), "{end}");
        }
        assert!(message(b"GGML....").contains("GGUF"));
        let with = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at..at + 4].fill(value);
            message(&bytes)
        };
        assert!(with(4, 9).contains("version"));
        // More tensors and more metadata than there are.
        assert!(!with(8, 0xff).is_empty() && !with(16, 0xff).is_empty());
        let at =
            whole.windows(1).enumerate().position(|(i, _)| whole[i..].starts_with(b"q\x02\0\0\0")).unwrap();
        let kind = at + 1 + 4 + 16;
        assert_eq!(whole[kind], Kind::Q4_1 as u8);
        let mut bytes = whole.clone();
        bytes[kind] = 12;
        assert!(message(&bytes).contains("`q` is Q4_K"), "{}", message(&bytes));
        bytes[kind] = 200;
        assert!(message(&bytes).contains("`q` is type 200"));
    }
}
