//! A model's files for exports: its transformer under diffusers' names, and what lies around it in either layout, whatever the
//! layout that it was loaded from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use taq_core::{Arrangement, Checkpoint, Companion, Companions, Error, Result, StoredTensor};

use super::mmdit::{Mmdit, MmditConfig, original_layout};
use super::source::{CLIP_G, CLIP_L, Component, Encoder, ModelFiles, T5_XXL, TRANSFORMER_PREFIX, VAE_PREFIX};
use super::vae::Vae;
use super::weights::Layout;

/// The transformer's folder in diffusers' layout.
const TRANSFORMER: &str = "transformer";
/// The autoencoder's.
const VAE: &str = "vae";
/// How diffusers names the weights of its own models.
const STEM: &str = "diffusion_pytorch_model";

/// The transformer's weights and configuration, read anew.
pub(super) fn checkpoint(files: &ModelFiles, transformer: &Mmdit) -> Result<Checkpoint> {
    let tensors = transformer.stored(&files.transformer)?;
    let config = transformer.config();
    Ok(Checkpoint {
        component: TRANSFORMER,
        config: configuration(&files.transformer, config)?,
        original: original_layout("", config.num_layers).originals(tensors.keys()),
        prefix: TRANSFORMER_PREFIX,
        tensors,
        modules: transformer.modules().collect(),
    })
}

/// What belongs to the model beside its transformer's weights.
///
/// # Errors
/// [`Error::Unsupported`] with the file that diffusers' layout needs and that is not there.
pub(super) fn companions(
    files: &ModelFiles,
    vae: &Vae,
    transformer: &MmditConfig,
    arrangement: Arrangement,
) -> Result<Companions> {
    match arrangement {
        Arrangement::Folder if files.root.is_dir() => diffusers_folder(&files.root),
        Arrangement::Folder => folder_of_single_file(files, vae, transformer),
        Arrangement::SingleFile => single_file(files, vae, transformer),
    }
}

/// All files of a folder that is in diffusers' layout already, but the transformer's weights.
fn diffusers_folder(root: &Path) -> Result<Companions> {
    let mut companions = Companions::default();
    add_folder(&mut companions, root, Path::new(""))?;
    companions.files.retain(|path, _| !(path.starts_with(TRANSFORMER) && is_weights(path)));
    Ok(companions)
}

/// diffusers' folders of a model in a single file and what lies beside it.
fn folder_of_single_file(files: &ModelFiles, vae: &Vae, transformer: &MmditConfig) -> Result<Companions> {
    let mut companions = Companions::default();
    add_beside(&mut companions, files)?;
    let config = Companion::Json(configuration(&files.transformer, transformer)?);
    companions.files.insert(Path::new(TRANSFORMER).join("config.json"), config);
    let mut add = |folder: &str, stem: &str, component: &Component, tensors| -> Result<()> {
        let config = component.config.clone().ok_or_else(|| lacking(files, folder, "config.json"))?;
        companions.files.insert(Path::new(folder).join("config.json"), Companion::Copy(config));
        let weights = Path::new(folder).join(format!("{stem}.safetensors"));
        companions.files.insert(weights, Companion::Tensors(tensors));
        Ok(())
    };
    add(VAE, STEM, &files.vae, vae.stored(&files.vae)?)?;
    for (component, encoder) in encoders(files) {
        add(encoder.folder, "model", component, text_tensors(component)?)?;
    }
    for (encoder, tokenizer, folder) in [
        (&files.clip_l, &files.tokenizer_l, "tokenizer"),
        (&files.clip_g, &files.tokenizer_g, "tokenizer_2"),
        (&files.t5, &files.tokenizer_t5, "tokenizer_3"),
    ] {
        if encoder.is_some() && tokenizer.is_none() {
            return Err(lacking(files, folder, "the files of a tokenizer"));
        }
    }
    if files.scheduler.is_none() {
        let document = json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": super::model::SHIFT,
        });
        companions.files.insert("scheduler/scheduler_config.json".into(), Companion::Json(object(document)));
    }
    companions.files.insert("model_index.json".into(), Companion::Json(model_index(files)));
    Ok(companions)
}

/// VAE and CLIP encoders for the transformer's file, and the rest beside it. T5, several times as large as all others, stays a
/// file of its own unless it was in the model's single file.
fn single_file(files: &ModelFiles, vae: &Vae, transformer: &MmditConfig) -> Result<Companions> {
    let mut companions = Companions::default();
    add_beside(&mut companions, files)?;
    let config = Companion::Json(configuration(&files.transformer, transformer)?);
    companions.files.insert(Path::new(TRANSFORMER).join("config.json"), config);
    companions.tensors = vae.original(&vae.stored(&files.vae)?, VAE_PREFIX)?;
    if let Some(config) = &files.vae.config {
        companions.files.insert(Path::new(VAE).join("config.json"), Companion::Copy(config.clone()));
    }
    for (component, encoder) in encoders(files) {
        if let Some(config) = &component.config {
            let path = Path::new(encoder.folder).join("config.json");
            companions.files.insert(path, Companion::Copy(config.clone()));
        }
        let own_file = component.weights != files.root;
        if encoder.folder == T5_XXL.folder && own_file {
            add_weights(&mut companions, component, encoder)?;
        } else {
            let tensors = text_tensors(component)?.into_iter();
            companions
                .tensors
                .extend(tensors.map(|(name, tensor)| (format!("{}{name}", encoder.prefix), tensor)));
        }
    }
    Ok(companions)
}

/// The text encoders that the model has, in diffusers' order.
fn encoders(files: &ModelFiles) -> impl Iterator<Item = (&Component, &'static Encoder)> {
    let all = [(&files.clip_l, &CLIP_L), (&files.clip_g, &CLIP_G), (&files.t5, &T5_XXL)];
    all.into_iter().filter_map(|(component, encoder)| Some((component.as_ref()?, encoder)))
}

fn text_tensors(component: &Component) -> Result<BTreeMap<String, StoredTensor>> {
    Ok(component.open()?.stored(&Layout::prefixed(component.prefix)))
}

/// The weights of an encoder in files of its own, shards and all, in diffusers' folder.
fn add_weights(companions: &mut Companions, component: &Component, encoder: &Encoder) -> Result<()> {
    let folder = Path::new(encoder.folder);
    for path in component.open()?.files() {
        let name = match component.is_sharded() {
            true => path.file_name().map(PathBuf::from).unwrap_or_default(),
            false => "model.safetensors".into(),
        };
        companions.files.insert(folder.join(name), Companion::Copy(path.to_owned()));
    }
    if component.is_sharded() {
        let index = folder.join("model.safetensors.index.json");
        companions.files.insert(index, Companion::Copy(component.weights.clone()));
    }
    Ok(())
}

/// Tokenizers, schedule and evaluator.
fn add_beside(companions: &mut Companions, files: &ModelFiles) -> Result<()> {
    for (folder, name) in [
        (&files.tokenizer_l, "tokenizer"),
        (&files.tokenizer_g, "tokenizer_2"),
        (&files.tokenizer_t5, "tokenizer_3"),
    ] {
        if let Some(folder) = folder {
            add_folder(companions, folder, Path::new(name))?;
        }
    }
    if let Some(scheduler) = &files.scheduler {
        companions.files.insert("scheduler/scheduler_config.json".into(), Companion::Copy(scheduler.clone()));
    }
    let evaluator = super::model::evaluator_folder(&files.root);
    if evaluator.is_dir() {
        add_folder(companions, &evaluator, Path::new("evaluator"))?;
    }
    Ok(())
}

/// All files of a folder, those below it too, but hidden ones.
fn add_folder(companions: &mut Companions, from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
        let entry = entry.map_err(Error::io("read", from))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            add_folder(companions, &source, &target)?;
        } else {
            companions.files.insert(target, Companion::Copy(source));
        }
    }
    Ok(())
}

fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".safetensors") || (name.contains(".safetensors.index") && name.ends_with(".json"))
}

/// The transformer's `config.json`, or what its weights imply.
fn configuration(component: &Component, config: &MmditConfig) -> Result<Map<String, Value>> {
    const KIND: &str = "configuration of the transformer";
    match &component.config {
        Some(path) => {
            let text = fs::read(path).map_err(Error::io("read", path))?;
            serde_json::from_slice(&text).map_err(|e| Error::malformed(KIND, path, e))
        }
        None => Ok(object(json!(config))),
    }
}

/// diffusers' `model_index.json`.
fn model_index(files: &ModelFiles) -> Map<String, Value> {
    let text =
        |there: bool, class: &str| if there { json!(["transformers", class]) } else { json!([null, null]) };
    let [l, g, t5] = [&files.clip_l, &files.clip_g, &files.t5].map(Option::is_some);
    object(json!({
        "_class_name": "StableDiffusion3Pipeline",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": text(l, "CLIPTextModelWithProjection"),
        "text_encoder_2": text(g, "CLIPTextModelWithProjection"),
        "text_encoder_3": text(t5, "T5EncoderModel"),
        "tokenizer": text(l, "CLIPTokenizer"),
        "tokenizer_2": text(g, "CLIPTokenizer"),
        "tokenizer_3": text(t5, "T5TokenizerFast"),
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }))
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

fn lacking(files: &ModelFiles, folder: &str, what: &str) -> Error {
    let beside = files.root.parent().unwrap_or(Path::new("."));
    Error::Unsupported {
        what: format!(
            "a folder of diffusers' layout needs `{folder}` with {what}, which `{}` has not inside and `{}` not beside it; \
             put it there from the model's diffusers repository, or export as gguf, mlx or single-file",
            files.root.display(),
            beside.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::sd3::mmdit::Compat;
    use crate::models::sd3::source::T5;
    use crate::models::sd3::testing::repository;
    use crate::models::sd3::weights::Weights;

    struct Loaded {
        files: ModelFiles,
        transformer: Mmdit,
        vae: Vae,
    }

    fn load(model: &Path) -> Loaded {
        let files = ModelFiles::resolve(model.to_str(), T5::Auto).unwrap();
        let transformer = Mmdit::load(&files.transformer, Compat::None, mlx_rs::Dtype::Float32).unwrap();
        let vae = Vae::load(&files.vae).unwrap();
        Loaded { files, transformer, vae }
    }

    impl Loaded {
        fn companions(&self, arrangement: Arrangement) -> Result<Companions> {
            companions(&self.files, &self.vae, self.transformer.config(), arrangement)
        }
    }

    fn tensors(path: &Path) -> BTreeMap<String, StoredTensor> {
        Weights::open(path).unwrap().stored(&Layout::default())
    }

    /// The files of `tests/golden` are diffusers' own and those that its converter maps back to them, bit for bit.
    #[test]
    fn both_layouts_give_the_tensors_of_both() {
        for variant in ["tests/golden/tiny-sd3", "tests/golden/tiny-sd35"] {
            let root = repository(variant);
            let file = root.join("single_file.safetensors");
            let expected_vae = tensors(&root.join("vae/diffusion_pytorch_model.safetensors"));
            for source in [&root, &file] {
                let loaded = load(source);
                let found = checkpoint(&loaded.files, &loaded.transformer).unwrap();
                assert!(
                    found.tensors == tensors(&root.join("transformer/diffusion_pytorch_model.safetensors"))
                );
                let vae = loaded.vae.stored(&loaded.files.vae).unwrap();
                assert!(vae == expected_vae, "{}", source.display());

                let companions = loaded.companions(Arrangement::SingleFile).unwrap();
                let mut whole = companions.tensors;
                whole.retain(|name, _| name.starts_with(VAE_PREFIX));
                for (name, original) in &found.original {
                    whole.insert(
                        format!("{}{name}", found.prefix),
                        original.assemble(&found.tensors).unwrap(),
                    );
                }
                assert!(whole == tensors(&file), "{}", source.display());
            }
        }
    }

    #[test]
    fn what_diffusers_layout_needs_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let golden = repository("tests/golden/tiny-sd3");
        let file = folder.path().join("model.safetensors");
        fs::copy(golden.join("single_file.safetensors"), &file).unwrap();
        fs::create_dir(folder.path().join("vae")).unwrap();
        fs::copy(golden.join("vae/config.json"), folder.path().join("vae/config.json")).unwrap();
        let loaded = load(&file);
        // The transformer's configuration follows from its weights; heads of 64 channels are taken for granted.
        let config = checkpoint(&loaded.files, &loaded.transformer).unwrap().config;
        assert_eq!(config["_class_name"], "SD3Transformer2DModel");
        assert_eq!(config["num_layers"], 3);
        let companions = loaded.companions(Arrangement::Folder).unwrap();
        let names: Vec<String> = companions.files.keys().map(|p| p.to_str().unwrap().to_owned()).collect();
        assert_eq!(
            names,
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "transformer/config.json",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors"
            ]
        );
        // Encoders beside it want their tokenizers.
        for encoder in ["text_encoder", "text_encoder_2"] {
            let to = folder.path().join(encoder);
            fs::create_dir(&to).unwrap();
            for name in ["config.json", "model.safetensors"] {
                fs::copy(golden.join(encoder).join(name), to.join(name)).unwrap();
            }
        }
        let error = load(&file).companions(Arrangement::Folder).unwrap_err().to_string();
        assert!(error.contains("needs `tokenizer`"), "{error}");
        fs::remove_file(folder.path().join("text_encoder_2/config.json")).unwrap();
        let error = load(&file).companions(Arrangement::Folder).unwrap_err().to_string();
        assert!(error.contains("`text_encoder_2` with config.json"), "{error}");
    }
}
