//! Which files of a repository taq needs.

use std::path::{Component, Path};

use serde::Deserialize;

use super::super::T5;

/// A file of a repository, as the Hub lists it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Sibling {
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    pub(super) size: Option<u64>,
}

/// The files to fetch, small ones first, so that a mistake shows before hours of transfer. Of each component's
/// weights one variant: half precision where there is one, since it is half the transfer.
///
/// # Errors
/// The reason, if the repository is not in diffusers' layout.
pub(super) fn wanted(siblings: &[Sibling], t5: T5) -> Result<Vec<Sibling>, String> {
    if !siblings.iter().any(|s| s.name == "transformer/config.json") {
        return Err("it is not in diffusers' layout (no `transformer/config.json`); for a single-file \
                    checkpoint, download the file and give its path"
            .into());
    }
    let has_half = |folder: &str| {
        siblings.iter().filter_map(|s| s.name.split_once('/')).any(|(f, file)| {
            f == folder && file.ends_with(".safetensors") && weights(f, file) == Some(Precision::Half)
        })
    };
    let is_wanted = |name: &str| {
        let Some((folder, file)) = name.split_once('/') else { return name == "model_index.json" };
        match folder {
            "text_encoder_3" | "tokenizer_3" if t5 == T5::Off => false,
            "tokenizer" | "tokenizer_2" | "tokenizer_3" => {
                Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
            }
            "scheduler" => file == "scheduler_config.json",
            _ => match weights(folder, file) {
                Some(precision) => (precision == Precision::Half) == has_half(folder),
                None => stem(folder).is_some() && file == "config.json",
            },
        }
    };
    let mut files: Vec<Sibling> = siblings.iter().filter(|s| is_wanted(&s.name)).cloned().collect();
    files.sort_by_key(|s| (s.size.unwrap_or(u64::MAX), s.name.clone()));
    Ok(files)
}

#[derive(PartialEq)]
enum Precision {
    Full,
    Half,
}

/// What the names of a component's weights begin with; `None` for folders without weights.
fn stem(folder: &str) -> Option<&'static str> {
    match folder {
        "transformer" | "vae" => Some("diffusion_pytorch_model"),
        "text_encoder" | "text_encoder_2" | "text_encoder_3" => Some("model"),
        _ => None,
    }
}

/// Of which precision these weights, or this index of them, are; `None` for other files.
fn weights(folder: &str, file: &str) -> Option<Precision> {
    let rest = file.strip_prefix(stem(folder)?)?;
    // `.fp16.safetensors`, `.fp16-00001-of-00002.safetensors`, `.safetensors.index.fp16.json`, …
    let full = rest.replacen(".fp16", "", 1);
    let known = match full.as_str() {
        ".safetensors" | ".safetensors.index.json" => true,
        shard => shard.starts_with('-') && shard.ends_with(".safetensors") && !shard.contains('/'),
    };
    known.then_some(if full == rest { Precision::Full } else { Precision::Half })
}
