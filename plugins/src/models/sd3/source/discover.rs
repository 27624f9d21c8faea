//! Finds the components of a model in a folder or a single file.

use std::path::{Path, PathBuf};

use taq_core::{Error, Result};

use super::super::weights::Weights;
use super::{Component, ModelFiles, Naming};

/// What the original layout's names of the transformer begin with.
pub(crate) const TRANSFORMER_PREFIX: &str = "model.diffusion_model.";
/// What its names of the autoencoder begin with.
pub(crate) const VAE_PREFIX: &str = "first_stage_model.";

/// A text encoder: diffusers' folder, the prefix within a single file, and the names of a file of its own.
pub(crate) struct Encoder {
    /// In diffusers' layout.
    pub(crate) folder: &'static str,
    /// What its names in a single file begin with.
    pub(crate) prefix: &'static str,
    /// What a file of its own is called.
    files: &'static [&'static str],
}

/// CLIP-L.
pub(crate) const CLIP_L: Encoder = Encoder {
    folder: "text_encoder",
    prefix: "text_encoders.clip_l.transformer.",
    files: &["clip_l.safetensors"],
};
/// CLIP-G.
pub(crate) const CLIP_G: Encoder = Encoder {
    folder: "text_encoder_2",
    prefix: "text_encoders.clip_g.transformer.",
    files: &["clip_g.safetensors"],
};
/// The T5 encoder.
pub(crate) const T5_XXL: Encoder = Encoder {
    folder: "text_encoder_3",
    prefix: "text_encoders.t5xxl.transformer.",
    files: &["t5xxl.safetensors", "t5xxl_fp16.safetensors"],
};

/// The model in a folder: diffusers' layout, or a single file of the original layout and what lies beside it.
pub(super) fn folder(root: &Path) -> Result<ModelFiles> {
    let part = |name: &str, stem: &str| component(&root.join(name), stem);
    if part("transformer", "diffusion_pytorch_model").is_none() {
        match only_single_file(root) {
            // A folder `transformer` may hold the configuration of a single file.
            Err(Error::Settings { .. }) if root.join("transformer").is_dir() => {}
            found => return single_file(&found?),
        }
    }
    let needed = |name: &str, stem: &str| {
        part(name, stem).ok_or_else(|| {
            Error::settings(
                "model setting `source`",
                format!("`{}` has no `{name}/{stem}.safetensors`", root.display()),
            )
        })
    };
    Ok(ModelFiles {
        name: file_name(root),
        root: root.to_owned(),
        transformer: needed("transformer", "diffusion_pytorch_model")?,
        vae: needed("vae", "diffusion_pytorch_model")?,
        clip_l: part(CLIP_L.folder, "model"),
        clip_g: part(CLIP_G.folder, "model"),
        t5: part(T5_XXL.folder, "model"),
        ..beside(root)
    })
}

/// The model in a file of the original layout and what lies beside it.
pub(super) fn single_file(file: &Path) -> Result<ModelFiles> {
    let weights = Weights::open(file)?;
    let has = |prefix: &str| weights.keys().any(|k| k.starts_with(prefix));
    if !has(TRANSFORMER_PREFIX) {
        return Err(Error::settings(
            "model setting `source`",
            format!(
                "`{}` has no tensors named `{TRANSFORMER_PREFIX}…`, so it is not a Stable Diffusion 3 checkpoint \
                 of the original layout; for diffusers' layout, name the folder that holds `transformer/`",
                file.display()
            ),
        ));
    }
    let root = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let within = |prefix, naming, folder: &str| Component {
        weights: file.to_owned(),
        prefix,
        naming,
        config: existing(root.join(folder).join("config.json")),
    };
    let vae = if has(VAE_PREFIX) {
        Some(within(VAE_PREFIX, Naming::Original, "vae"))
    } else {
        component(&root.join("vae"), "diffusion_pytorch_model")
    };
    let encoder = |encoder: &Encoder| {
        if has(encoder.prefix) {
            return Some(within(encoder.prefix, Naming::Diffusers, encoder.folder));
        }
        let own = encoder
            .files
            .iter()
            .flat_map(|name| [root.join(name), root.join("text_encoders").join(name)])
            .find(|path| path.is_file());
        match own {
            Some(weights) => Some(Component { weights, ..within("", Naming::Diffusers, encoder.folder) }),
            None => component(&root.join(encoder.folder), "model"),
        }
    };
    Ok(ModelFiles {
        name: file.file_stem().map_or_else(|| file_name(file), |s| s.to_string_lossy().into_owned()),
        root: file.to_owned(),
        transformer: within(TRANSFORMER_PREFIX, Naming::Original, "transformer"),
        vae: vae.ok_or_else(|| {
            Error::settings(
                "model setting `source`",
                format!("neither `{}` nor a `vae` folder beside it holds an autoencoder", file.display()),
            )
        })?,
        clip_l: encoder(&CLIP_L),
        clip_g: encoder(&CLIP_G),
        t5: encoder(&T5_XXL),
        ..beside(root)
    })
}

/// What both arrangements keep in folders of diffusers' names; the components are empty.
fn beside(root: &Path) -> ModelFiles {
    let tokenizer = |name: &str| Some(root.join(name)).filter(|p| p.is_dir());
    let nothing = Component { weights: PathBuf::new(), prefix: "", naming: Naming::Diffusers, config: None };
    ModelFiles {
        name: String::new(),
        root: root.to_owned(),
        transformer: nothing.clone(),
        vae: nothing,
        clip_l: None,
        clip_g: None,
        t5: None,
        tokenizer_l: tokenizer("tokenizer"),
        tokenizer_g: tokenizer("tokenizer_2"),
        tokenizer_t5: tokenizer("tokenizer_3"),
        scheduler: existing(root.join("scheduler/scheduler_config.json")),
    }
}

/// A component of diffusers' layout: its `config.json` and its weights, full precision before half, whole before
/// sharded. `None` if the folder does not exist or has no weights.
fn component(folder: &Path, stem: &str) -> Option<Component> {
    let names = [
        format!("{stem}.safetensors"),
        format!("{stem}.safetensors.index.json"),
        format!("{stem}.fp16.safetensors"),
        format!("{stem}.safetensors.index.fp16.json"),
        format!("{stem}.fp16.safetensors.index.json"),
    ];
    let weights = names.iter().map(|name| folder.join(name)).find(|path| path.is_file())?;
    let config = existing(folder.join("config.json"));
    Some(Component { weights, prefix: "", naming: Naming::Diffusers, config })
}

/// The one file of the original layout in a folder.
fn only_single_file(root: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(Error::io("read", root))? {
        let path = entry.map_err(Error::io("read", root))?.path();
        let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
        if is_safetensors && Weights::open(&path)?.keys().any(|k| k.starts_with(TRANSFORMER_PREFIX)) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [file] => Ok(file.clone()),
        [] => Err(Error::settings(
            "model setting `source`",
            format!(
                "`{}` is not a model: it has neither a `transformer` folder (diffusers' layout) nor a \
                 `.safetensors` file with `{TRANSFORMER_PREFIX}…` tensors (the original layout)",
                root.display()
            ),
        )),
        several => Err(Error::settings(
            "model setting `source`",
            format!(
                "`{}` holds several models; name one of them: {}",
                root.display(),
                several.iter().map(|p| file_name(p)).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

fn file_name(path: &Path) -> String {
    let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    absolute.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
    }

    /// A safetensors file with these tensors, all empty.
    fn safetensors(path: &Path, keys: &[&str]) {
        let header: serde_json::Map<_, _> = keys
            .iter()
            .map(|k| {
                let tensor = serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
                ((*k).to_owned(), tensor)
            })
            .collect();
        let header = serde_json::to_vec(&header).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    }

    #[test]
    fn a_folder_of_diffusers_layout() {
        let files = folder(&golden("tiny-sd3")).unwrap();
        assert_eq!(files.name, "tiny-sd3");
        assert_eq!(files.vae.naming, Naming::Diffusers);
        assert_eq!(files.vae.prefix, "");
        assert!(files.t5.unwrap().config.unwrap().ends_with("text_encoder_3/config.json"));
        assert_eq!(files.tokenizer_l, None);
        assert!(files.scheduler.is_some());
    }

    #[test]
    fn a_single_file_and_its_sibling_folders() {
        let files = single_file(&golden("tiny-sd3/single_file.safetensors")).unwrap();
        assert_eq!(files.name, "single_file");
        assert_eq!(
            (files.transformer.prefix, files.transformer.naming),
            (TRANSFORMER_PREFIX, Naming::Original)
        );
        assert_eq!((files.vae.prefix, files.vae.naming), (VAE_PREFIX, Naming::Original));
        assert!(files.vae.config.unwrap().ends_with("vae/config.json"));
        assert_eq!(files.clip_l.unwrap().prefix, "");
    }

    #[test]
    fn a_single_file_with_everything_inside_or_beside_it() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("sd3_medium_incl_clips.safetensors");
        safetensors(
            &file,
            &["model.diffusion_model.pos_embed", "first_stage_model.x", "text_encoders.clip_l.transformer.x"],
        );
        safetensors(&temp.path().join("text_encoders/clip_g.safetensors"), &["text_model.x"]);
        // A folder with one such file is that file.
        let files = folder(temp.path()).unwrap();
        assert_eq!(files.root, file);
        let clip_l = files.clip_l.unwrap();
        assert_eq!((clip_l.weights, clip_l.prefix), (file, CLIP_L.prefix));
        assert_eq!((clip_l.naming, clip_l.config), (Naming::Diffusers, None));
        assert!(files.clip_g.unwrap().weights.ends_with("text_encoders/clip_g.safetensors"));
        assert_eq!(files.t5, None);
        assert_eq!(files.vae.config, None);
    }

    #[test]
    fn of_several_variants_the_most_precise_one_counts() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(component(temp.path(), "model"), None);
        for name in ["model.fp16.safetensors", "model.safetensors.index.json", "model.safetensors"] {
            fs::write(temp.path().join(name), "").unwrap();
            assert_eq!(component(temp.path(), "model").unwrap().weights, temp.path().join(name));
        }
    }

    #[test]
    fn what_is_no_model_is_refused_with_a_reason() {
        let temp = tempfile::tempdir().unwrap();
        let reason = |r: Result<ModelFiles>| r.unwrap_err().to_string();
        assert!(reason(folder(temp.path())).contains("neither a `transformer` folder"));
        let file = temp.path().join("m.safetensors");
        safetensors(&file, &["unet.weight"]);
        assert!(reason(single_file(&file)).contains("not a Stable Diffusion 3 checkpoint"));
        safetensors(&file, &["model.diffusion_model.pos_embed"]);
        assert!(reason(single_file(&file)).contains("autoencoder"));
        fs::write(&file, b"abc").unwrap();
        assert!(matches!(single_file(&file), Err(Error::Malformed { .. })));
        safetensors(&temp.path().join("a.safetensors"), &["model.diffusion_model.x"]);
        safetensors(&file, &["model.diffusion_model.x"]);
        let error = reason(folder(temp.path()));
        assert!(error.contains("a.safetensors, m.safetensors"), "{error}");
        fs::create_dir(temp.path().join("transformer")).unwrap();
        assert!(reason(folder(temp.path())).contains("transformer/diffusion_pytorch_model.safetensors"));
    }
}
