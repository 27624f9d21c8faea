//! A hash of everything that decides a model's numbers.

use std::collections::BTreeSet;
use std::path::Path;

use taq_core::{Error, Result};

use super::mmdit::Compat;
use super::source::{Component, ModelFiles, T5};
use super::weights::Weights;

/// Hashes the configurations, weights and tokenizers of a model by content, so that equal models have equal
/// fingerprints wherever they lie, and the settings that change what they compute. The element type is not among them:
/// a model in half precision takes the plans and weights that were made for it in f32.
pub(super) fn fingerprint(files: &ModelFiles, compat: Compat, t5: T5) -> Result<String> {
    let mut hash = Hash { hasher: blake3::Hasher::new(), seen: BTreeSet::new() };
    hash.text("compat", &format!("{compat:?}"));
    hash.component("transformer", &files.transformer)?;
    hash.component("vae", &files.vae)?;
    let with_t5 = t5 != T5::Off;
    let encoders = [
        ("clip_l", &files.clip_l, &files.tokenizer_l, true),
        ("clip_g", &files.clip_g, &files.tokenizer_g, true),
        ("t5", &files.t5, &files.tokenizer_t5, with_t5),
    ];
    for (label, encoder, tokenizer, used) in encoders {
        if let Some(encoder) = encoder.as_ref().filter(|_| used) {
            hash.component(label, encoder)?;
        }
        if let Some(tokenizer) = tokenizer.as_ref().filter(|_| used) {
            hash.folder(label, tokenizer)?;
        }
    }
    Ok(hash.hasher.finalize().to_hex()[..32].to_owned())
}

struct Hash<'a> {
    hasher: blake3::Hasher,
    /// Weight files that are in already: several components may share one.
    seen: BTreeSet<&'a Path>,
}

impl<'a> Hash<'a> {
    /// A labelled piece, so that no two sequences of pieces are the same bytes.
    fn text(&mut self, label: &str, text: &str) {
        self.bytes(label, text.as_bytes());
    }

    fn bytes(&mut self, label: &str, bytes: &[u8]) {
        for part in [label.as_bytes(), bytes] {
            self.hasher.update(&(part.len() as u64).to_le_bytes());
            self.hasher.update(part);
        }
    }

    fn component(&mut self, label: &str, component: &'a Component) -> Result<()> {
        self.text(label, component.prefix);
        if let Some(path) = &component.config {
            self.bytes("config", &std::fs::read(path).map_err(Error::io("read", path))?);
        }
        if self.seen.insert(&component.weights) {
            self.text("weights", "");
            Weights::open(&component.weights)?.hash_into(&mut self.hasher);
        }
        Ok(())
    }

    /// The files of a folder, in the order of their names.
    fn folder(&mut self, label: &str, folder: &Path) -> Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            if path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        self.text(label, "");
        for path in files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.bytes(&name, &std::fs::read(&path).map_err(Error::io("read", &path))?);
        }
        Ok(())
    }
}
