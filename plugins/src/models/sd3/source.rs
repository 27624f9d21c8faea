//! Where a model's files are: the embedded model, a folder, a single file, or a Hugging Face repository.
//!
//! Two arrangements are known. *diffusers*: a folder with `transformer/`, `vae/`, `text_encoder/`, … as
//! `StableDiffusion3Pipeline.save_pretrained` writes it. *Original*: one `.safetensors` file with
//! `model.diffusion_model.*` and `first_stage_model.*`, where text encoders are inside the file
//! (`text_encoders.clip_l.transformer.*`), beside it (`clip_l.safetensors`) or in sibling folders, and
//! tokenizers and configurations in sibling folders of diffusers' names.
//!
//! Nothing is loaded here; the result says which tensors of which files make up each component.

mod discover;
mod hub;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use taq_core::{Error, Result};

use super::weights::Weights;
pub(crate) use discover::{CLIP_G, CLIP_L, Encoder, T5_XXL, TRANSFORMER_PREFIX, VAE_PREFIX};

/// Whether prompts also go through the T5 encoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum T5 {
    /// If the model has one.
    #[default]
    Auto,
    /// Yes; a model without one is refused.
    On,
    /// No: zeros stand in its place, as diffusers does without `text_encoder_3`. Its files are not fetched.
    Off,
}

/// How the tensors of a component are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// As in diffusers and transformers.
    Diffusers,
    /// As in Stability AI's own files.
    Original,
}

/// The tensors of one component of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Component {
    /// The safetensors file that holds them, or the index of several.
    pub(crate) weights: PathBuf,
    /// What stands before the component's own names in it; often nothing.
    pub(crate) prefix: &'static str,
    /// How the rest of the names reads.
    pub(crate) naming: Naming,
    /// The component's `config.json`. `None`: nobody says, so it is that of Stable Diffusion 3 Medium.
    pub(crate) config: Option<PathBuf>,
}

impl Component {
    /// Reads the component's configuration; `sd3_medium` if there is none.
    ///
    /// # Errors
    /// [`Error::Malformed`], naming it `kind`, if the file is not JSON or a field has a value that taq does not know.
    pub(crate) fn read_config<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        sd3_medium: impl FnOnce() -> T,
    ) -> Result<T> {
        let Some(path) = &self.config else { return Ok(sd3_medium()) };
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        serde_json::from_slice(&text).map_err(|e| Error::malformed(kind, path, e))
    }

    /// The file to name where the configuration does not make sense.
    pub(crate) fn config_or_weights(&self) -> &Path {
        self.config.as_deref().unwrap_or(&self.weights)
    }

    /// Whether the weights lie in several files that an index lists.
    pub(crate) fn is_sharded(&self) -> bool {
        self.weights.extension().is_some_and(|e| e == "json")
    }

    /// Opens the component's weights.
    pub(crate) fn open(&self) -> Result<Weights> {
        Weights::open(&self.weights)
    }
}

/// All files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelFiles {
    /// Name for people: of the folder, the file or the repository.
    pub(crate) name: String,
    /// The folder or the single file.
    pub(crate) root: PathBuf,
    /// The MMDiT.
    pub(crate) transformer: Component,
    /// The autoencoder.
    pub(crate) vae: Component,
    /// CLIP-L. Models without text encoders can denoise, but take no prompts.
    pub(crate) clip_l: Option<Component>,
    /// CLIP-G.
    pub(crate) clip_g: Option<Component>,
    /// The T5 encoder.
    pub(crate) t5: Option<Component>,
    /// Folder of CLIP-L's tokenizer.
    pub(crate) tokenizer_l: Option<PathBuf>,
    /// Folder of CLIP-G's tokenizer.
    pub(crate) tokenizer_g: Option<PathBuf>,
    /// Folder of T5's tokenizer.
    pub(crate) tokenizer_t5: Option<PathBuf>,
    /// `scheduler_config.json`.
    pub(crate) scheduler: Option<PathBuf>,
}

impl ModelFiles {
    /// Finds the files of `source`: `None` is the embedded `emoji-sd3`; a path is a folder or a `.safetensors`
    /// file; `owner/name` or `owner/name@revision` is a repository on the Hugging Face Hub, fetched into its
    /// usual cache unless it is there already.
    ///
    /// # Errors
    /// [`Error::Settings`] if `source` is neither a path nor a repository id, or if the folder is not a model;
    /// [`Error::Io`] and [`Error::Malformed`] for files that cannot be read; [`Error::Download`] if the Hub does
    /// not deliver.
    pub(crate) fn resolve(source: Option<&str>, t5: T5) -> Result<Self> {
        let files = match source {
            None => discover::folder(&embedded()?)?,
            Some(source) => Self::named(source, t5)?,
        };
        if t5 == T5::On && files.t5.is_none() {
            return Err(Error::settings(
                "model setting `t5`",
                format!("`on`, but `{}` has no T5 encoder (`text_encoder_3`)", files.name),
            ));
        }
        Ok(files)
    }

    fn named(source: &str, t5: T5) -> Result<Self> {
        let path = Path::new(source);
        if path.is_dir() {
            return discover::folder(path);
        }
        if path.is_file() {
            return discover::single_file(path);
        }
        if let Some(repo) = hub::RepoId::parse(source) {
            let folder = hub::Hub::from_env().snapshot(&repo, t5)?;
            let mut files = discover::folder(&folder)?;
            files.name = repo.id;
            return Ok(files);
        }
        Err(Error::settings(
            "model setting `source`",
            format!(
                "`{source}` is neither a file or folder that exists nor the id of a Hugging Face repository \
                 (`owner/name`)"
            ),
        ))
    }
}

/// Where the embedded model is, relative to the repository's root.
const EMBEDDED: &str = "models/emoji-sd3";

/// The folder of the embedded model: in `$TAQ_MODELS`, in the current folder or one above it, beside the
/// program or above it, or where taq was built.
fn embedded() -> Result<PathBuf> {
    let from_env = std::env::var_os("TAQ_MODELS").map(PathBuf::from);
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let under_env =
        from_env.iter().flat_map(|models| [models.join("emoji-sd3"), models.clone(), models.join(EMBEDDED)]);
    let above = here
        .iter()
        .map(PathBuf::as_path)
        .chain(program.as_deref())
        .chain([built])
        .flat_map(Path::ancestors)
        .map(|folder| folder.join(EMBEDDED));
    under_env.chain(above).find(|folder| folder.join("transformer/config.json").is_file()).ok_or_else(|| {
        Error::settings(
            "the embedded model",
            format!(
                "no `{EMBEDDED}` in $TAQ_MODELS, in the current folder, beside the program or in a folder above \
                 them; set TAQ_MODELS to the folder that holds `emoji-sd3`, or name another model"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_is_found_without_configuration() {
        let files = ModelFiles::resolve(None, T5::Auto).unwrap();
        assert_eq!(files.name, "emoji-sd3");
        assert!(files.transformer.weights.is_file());
        assert!(files.t5.is_none());
        assert!(files.tokenizer_g.is_some());
    }

    #[test]
    fn t5_on_needs_a_t5_encoder() {
        let error = ModelFiles::resolve(None, T5::On).unwrap_err().to_string();
        assert!(error.contains("emoji-sd3") && error.contains("text_encoder_3"), "{error}");
    }

    #[test]
    fn a_source_that_is_nothing_says_both_readings() {
        for source in ["no-such-model", "./nowhere", "/no/such/place", "a/b/c", "../x/y"] {
            let error = ModelFiles::resolve(Some(source), T5::Auto).unwrap_err().to_string();
            assert!(error.contains(source), "{error}");
            assert!(error.contains("owner/name") && error.contains("folder"), "{error}");
        }
    }
}
