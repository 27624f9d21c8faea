//! Tokenizers: prompts to ids.
//!
//! The work is the crate `tokenizers`'. Two things are added: CLIP's tokenizer can be assembled from `vocab.json`
//! and `merges.txt`, which is all that Stable Diffusion 3's repository has of it, and the padding token comes from
//! `tokenizer_config.json`, since CLIP-L pads with the end token and CLIP-G with `!`. The rules of CLIP's tokenizer
//! are those of `CLIPTokenizer` in huggingface/transformers 5.23.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use taq_core::{Error, Result};
use tokenizers::{AddedToken, Tokenizer as Inner};

/// Which tokenizer a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// CLIP-L's.
    ClipL,
    /// CLIP-G's.
    ClipG,
    /// T5's.
    T5,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::ClipL => "CLIP-L",
            Self::ClipG => "CLIP-G",
            Self::T5 => "T5",
        }
    }

    /// What pads if the configuration does not say.
    fn padding(self) -> &'static str {
        match self {
            Self::ClipL => END,
            Self::ClipG => "!",
            Self::T5 => "<pad>",
        }
    }
}

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// How CLIP cuts a text into words: its special tokens, English contractions, runs of letters, single digits,
/// runs of anything else.
const CLIP_WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns prompts into rows of token ids.
pub(crate) struct Tokenizer {
    inner: Inner,
    kind: Kind,
    padding: i32,
    max_length: Option<usize>,
}

/// The fields of `tokenizer_config.json` that matter here.
#[derive(Default, Deserialize)]
struct Config {
    pad_token: Option<Value>,
    /// A float, and 1e30 where there is no limit.
    model_max_length: Option<f64>,
}

impl Tokenizer {
    /// Reads a tokenizer's folder.
    ///
    /// # Errors
    /// [`Error::Settings`] if the folder lacks the tokenizer; [`Error::Malformed`] if a file is not what it should
    /// be; [`Error::Unsupported`] for a folder with nothing but SentencePiece's `spiece.model`.
    pub(crate) fn load(folder: &Path, kind: Kind) -> Result<Self> {
        let config: Config = match folder.join("tokenizer_config.json") {
            path if path.is_file() => json_file("tokenizer configuration", &path)?,
            _ => Config::default(),
        };
        let whole = folder.join("tokenizer.json");
        let vocabulary = folder.join("vocab.json");
        let (mut inner, path) = if whole.is_file() {
            (read(&whole)?, whole)
        } else if kind != Kind::T5 && vocabulary.is_file() {
            (assemble_clip(&vocabulary, &folder.join("merges.txt"))?, vocabulary)
        } else {
            return Err(absent(folder, kind));
        };
        let malformed = |reason: String| Error::malformed("tokenizer", &path, reason);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| malformed(e.to_string()))?;

        let padding = match &config.pad_token {
            Some(Value::String(token)) => token.as_str(),
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default(),
            _ => kind.padding(),
        };
        let Some(id) = inner.token_to_id(padding) else {
            return Err(malformed(format!("it has no padding token `{padding}`")));
        };
        // As in transformers: what pads is a special token, in a prompt too.
        inner
            .add_special_tokens([AddedToken::from(padding.to_owned(), true)])
            .map_err(|e| malformed(e.to_string()))?;
        let max_length = config.model_max_length.filter(|l| (1.0..1e6).contains(l)).map(|l| l as usize);
        Ok(Self { inner, kind, padding: id as i32, max_length })
    }

    /// The longest row that the tokenizer's configuration allows, if it says so.
    pub(crate) fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// One row of `length` ids a prompt, row-major: start token (CLIP), the prompt, end token, padding. What does
    /// not fit is cut from the prompt's end; the end token stays.
    pub(crate) fn encode(&self, prompts: &[impl AsRef<str>], length: usize) -> Result<Vec<i32>> {
        let mut rows = Vec::with_capacity(prompts.len() * length);
        for prompt in prompts {
            let prompt = prompt.as_ref();
            let encoding = self.inner.encode_fast(prompt, true).map_err(|e| Error::Unsupported {
                what: format!("{}'s tokenizer cannot encode the prompt `{prompt}`: {e}", self.kind.name()),
            })?;
            let ids = encoding.get_ids();
            let kept = match ids {
                [head @ .., end] if ids.len() > length && length > 0 => {
                    let cut = ids.len() - length;
                    tracing::warn!(
                        "{} takes {length} tokens; the last {cut} of `{prompt}` are cut",
                        self.kind.name()
                    );
                    [&head[..length - 1], &[*end]].concat()
                }
                _ => ids.to_vec(),
            };
            let padding = std::iter::repeat_n(self.padding, length.saturating_sub(kept.len()));
            rows.extend(kept.into_iter().map(|id| id as i32).chain(padding));
        }
        Ok(rows)
    }
}

fn read(path: &Path) -> Result<Inner> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Inner::from_bytes(bytes).map_err(|e| Error::malformed("tokenizer", path, e))
}

fn json_file<T: serde::de::DeserializeOwned>(kind: &'static str, path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::malformed(kind, path, e))
}

fn absent(folder: &Path, kind: Kind) -> Error {
    if kind == Kind::T5 && folder.join("spiece.model").is_file() {
        return Error::Unsupported {
            what: format!(
                "`{}` has T5's tokenizer as `spiece.model` only, and taq reads `tokenizer.json`; transformers writes \
                 it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
                folder.display()
            ),
        };
    }
    let files = if kind == Kind::T5 {
        "`tokenizer.json`"
    } else {
        "`tokenizer.json`, or `vocab.json` and `merges.txt`"
    };
    Error::settings(
        "model setting `source`",
        format!("`{}` lacks the tokenizer of {}: {files}", folder.display(), kind.name()),
    )
}

/// CLIP's tokenizer from its vocabulary (token to id) and its merges (a pair a line, the most frequent first).
fn assemble_clip(vocabulary: &PathBuf, merges: &PathBuf) -> Result<Inner> {
    let vocab: BTreeMap<String, u32> = json_file("vocabulary", vocabulary)?;
    let id = |token: &str| {
        let missing = || Error::malformed("vocabulary", vocabulary, format!("it has no `{token}`"));
        vocab.get(token).copied().ok_or_else(missing)
    };
    let (start, end) = (id(START)?, id(END)?);
    let text = std::fs::read_to_string(merges).map_err(Error::io("read", merges))?;
    let mut pairs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [left, right] => pairs.push([(*left).to_owned(), (*right).to_owned()]),
            _ => {
                let reason = format!("line {}: `{line}` is not a pair of tokens", number + 1);
                return Err(Error::malformed("list of merges", merges, reason));
            }
        }
    }
    let special = |token: &str, id: u32| {
        json!({"id": id, "content": token, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let mut added = [(start, START), (end, END)];
    added.sort_unstable();
    let document = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.map(|(id, token)| special(token, id)),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CLIP_WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": pairs},
    });
    let bytes = serde_json::to_vec(&document).map_err(|e| Error::malformed("vocabulary", vocabulary, e))?;
    Inner::from_bytes(bytes).map_err(|e| Error::malformed("list of merges", merges, e))
}
