//! The tensors of one safetensors file, or of the shards that an index lists.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use taq_core::{Error, Result, StoredTensor};
use taq_mapped::Mapped;

use super::layout::{Layout, Part};

/// What [`Error::Malformed`] calls the files.
const KIND: &str = "safetensors file";

/// Where a tensor lies and how its bytes are to be read.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    start: usize,
    end: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// A tensor as the file holds it: row-major, little-endian.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawTensor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    file: &'a Arc<Mapped>,
    start: usize,
}

impl RawTensor<'_> {
    /// The same bytes, for later; holds the file open.
    pub(super) fn stored(&self) -> StoredBytes {
        StoredBytes { file: Arc::clone(self.file), start: self.start, len: self.bytes.len() }
    }
}

/// Bytes of a file that is mapped, not read.
#[derive(Debug)]
pub(super) struct StoredBytes {
    file: Arc<Mapped>,
    start: usize,
    len: usize,
}

impl StoredBytes {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.file[self.start..][..self.len]
    }
}

/// A read-only view of one or several safetensors files.
#[derive(Debug)]
pub(crate) struct Weights {
    path: PathBuf,
    files: Vec<(PathBuf, Arc<Mapped>)>,
    entries: BTreeMap<String, Entry>,
}

/// The `*.safetensors.index.json` beside sharded weights; only the map of tensors to files matters.
#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a `.safetensors` file, or the shards that a `.safetensors.index.json` lists.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "json") {
            Self::open_index(path)
        } else {
            Self::open_file(path)
        }
    }

    fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self { path: path.to_owned(), files: vec![], entries: BTreeMap::new() };
        weights.add(path)?;
        Ok(weights)
    }

    fn open_index(path: &Path) -> Result<Self> {
        const INDEX: &str = "safetensors index";
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let index: ShardIndex =
            serde_json::from_slice(&text).map_err(|e| Error::malformed(INDEX, path, e))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut weights = Self { path: path.to_owned(), files: vec![], entries: BTreeMap::new() };
        let mut shards: Vec<&String> = index.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            // A shard lies beside its index; anything else would let an index name any file of the machine.
            if Path::new(shard).file_name().is_none_or(|n| n != shard.as_str()) {
                return Err(Error::malformed(INDEX, path, format!("`{shard}` is not a plain file name")));
            }
            weights.add(&folder.join(shard))?;
        }
        for (key, shard) in &index.weight_map {
            let there = weights.entries.get(key).map(|e| &weights.files[e.file].0);
            if there.is_none_or(|p| p.file_name().is_none_or(|n| n != shard.as_str())) {
                return Err(Error::malformed(INDEX, path, format!("`{shard}` does not hold `{key}`")));
            }
        }
        Ok(weights)
    }

    /// Adds the tensors of one file.
    fn add(&mut self, path: &Path) -> Result<()> {
        let bytes = Mapped::open(path).map_err(Error::io("read", path))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| Error::malformed(KIND, path, explain(&e)))?;
        let file = self.files.len();
        let data = header + 8;
        let tensors: HashMap<String, _> = metadata.tensors();
        for (key, info) in tensors {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            let entry = Entry { file, start, end, dtype: info.dtype, shape: info.shape.clone() };
            if let Some(first) = self.entries.insert(key.clone(), entry) {
                let first = self.files[first.file].0.display();
                return Err(Error::malformed(KIND, path, format!("`{key}` is also in `{first}`")));
            }
        }
        self.files.push((path.to_owned(), Arc::new(bytes)));
        Ok(())
    }

    /// The file or index that was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The files with the tensors.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Names of all tensors, sorted.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.entries.get(key).map(|e| e.shape.as_slice())
    }

    /// Feeds all files into a hash, in the order of their names.
    pub(crate) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        for (_, bytes) in &self.files {
            hasher.update_rayon(bytes);
            bytes.forget();
        }
    }

    /// A copy of every tensor of a layout, by the model's names.
    pub(crate) fn stored(&self, layout: &Layout) -> BTreeMap<String, StoredTensor> {
        let mut tensors = BTreeMap::new();
        for (key, entry) in &self.entries {
            let bytes = &self.files[entry.file].1[entry.start..entry.end];
            for name in layout.model_names(key) {
                let part = layout.locate(&name).1;
                tensors.insert(name, part_of(bytes, entry, part));
            }
        }
        tensors
    }

    /// Gives back the memory that holds what was read of the files; what is read again comes from them.
    pub(super) fn forget(&self) {
        self.files.iter().for_each(|(_, bytes)| bytes.forget());
    }

    pub(super) fn raw(&self, key: &str) -> Option<RawTensor<'_>> {
        let e = self.entries.get(key)?;
        let file = &self.files[e.file].1;
        let bytes = &file[e.start..e.end];
        Some(RawTensor { bytes, dtype: e.dtype, shape: &e.shape, file, start: e.start })
    }
}

/// Some of a file's tensor, its elements as they are.
fn part_of(bytes: &[u8], entry: &Entry, part: Part) -> StoredTensor {
    let (mut bytes, mut shape) = (bytes.to_vec(), entry.shape.clone());
    match part {
        Part::Whole => {}
        Part::Pointwise => shape.truncate(2),
        Part::SwapHalves => {
            let half = bytes.len() / 2;
            bytes.rotate_left(half);
        }
        Part::Rows { index, of } => {
            let size = bytes.len() / of;
            bytes = bytes[index * size..][..size].to_vec();
            if let Some(rows) = shape.first_mut() {
                *rows /= of;
            }
        }
    }
    StoredTensor { dtype: entry.dtype, shape, bytes }
}

/// The reason why a file is refused, for people.
fn explain(e: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError as E;
    match e {
        E::MetadataIncompleteBuffer => {
            "it is cut short or has bytes after its tensors; fetch it again".into()
        }
        E::HeaderTooSmall | E::HeaderTooLarge | E::InvalidHeaderLength => {
            "it has no header; is it another format, a Git LFS pointer, or cut short?".into()
        }
        E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) => {
            format!("its header cannot be read ({e})")
        }
        e => e.to_string(),
    }
}
