//! Stable Diffusion 3 and 3.5 as a [`Model`] plugin.

use std::path::{Path, PathBuf};

use mlx_rs::{Array, Dtype};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::evaluator::Evaluator;
use taq_core::{
    Arrangement, BlockIo, Checkpoint, Companions, Conditioning, Error, LayerId, Model, ModelDefaults,
    ModelSpec, Result, Tap, register,
};

use super::export;
use super::fingerprint::fingerprint;
use super::mmdit::{Compat, Mmdit};
use super::precision::Precision;
use super::source::{ModelFiles, T5};
use super::text::TextEncoders;
use super::vae::Vae;

/// Prompts to calibrate on where a model brings none.
const PROMPTS: &str = include_str!("prompts.txt");

/// Settings of the model `sd3`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Sd3Settings {
    /// The model: a folder in diffusers' layout, a `.safetensors` file in Stability AI's layout, or the id of a
    /// Hugging Face repository (`owner/name`, `owner/name@revision`). Without it, the embedded `emoji-sd3`.
    source: Option<String>,
    /// Deviations from Stable Diffusion 3 to reproduce, for comparisons with other software.
    compat: Compat,
    /// Whether prompts also go through the T5 encoder.
    t5: T5,
    /// What the transformer computes in; half precision is for generating images on a GPU.
    dtype: Precision,
}

register!(
    Model,
    "sd3",
    Sd3Settings,
    Sd3::load,
    "Stable Diffusion 3 and 3.5 (MMDiT) from diffusers' or Stability AI's files; `emoji-sd3` is built in."
);

/// A Stable Diffusion 3 or 3.5 with its text encoders and its VAE.
pub(crate) struct Sd3 {
    spec: ModelSpec,
    defaults: ModelDefaults,
    transformer: Mmdit,
    text: TextEncoders,
    vae: Vae,
    files: ModelFiles,
    /// Where an evaluator would be.
    evaluator: PathBuf,
}

impl Sd3 {
    /// Finds, checks and loads a model.
    ///
    /// # Errors
    /// [`Error::Weights`] lists all tensors of a component that do not fit; otherwise as `ModelFiles::resolve`.
    pub(crate) fn load(settings: Sd3Settings) -> Result<Self> {
        let files = ModelFiles::resolve(settings.source.as_deref(), settings.t5)?;
        let transformer = Mmdit::load(&files.transformer, settings.compat, settings.dtype.dtype())?;
        let config = transformer.config();
        let text = TextEncoders::load(
            &files,
            settings.t5,
            config.joint_attention_dim,
            config.pooled_projection_dim,
        )?;
        let vae = Vae::load(&files.vae)?;
        if vae.latent_channels() != config.in_channels {
            return Err(Error::Unsupported {
                what: format!(
                    "the transformer works on {} latent channels and the VAE on {}: they are not of one model",
                    config.in_channels,
                    vae.latent_channels()
                ),
            });
        }
        Ok(Self {
            defaults: defaults(&files, config.sample_size * vae.factor())?,
            spec: ModelSpec {
                name: files.name.clone(),
                fingerprint: fingerprint(&files, settings.compat, settings.t5)?,
                blocks: transformer.block_specs(),
                weight_only: transformer.weight_only_specs(),
                latent_channels: config.in_channels,
                vae_factor: vae.factor(),
                patch_size: config.patch_size,
            },
            evaluator: evaluator_folder(&files.root),
            files,
            transformer,
            text,
            vae,
        })
    }
}

impl Model for Sd3 {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn defaults(&self) -> ModelDefaults {
        self.defaults.clone()
    }

    fn dtype(&self) -> Dtype {
        self.transformer.dtype()
    }

    fn evaluator(&self) -> Option<PathBuf> {
        Some(self.evaluator.clone()).filter(|folder| Evaluator::is_in(folder))
    }

    fn condition(&self, prompts: &[String]) -> Result<Conditioning> {
        self.text.encode(prompts)
    }

    fn embed(
        &self,
        x: &Array,
        timesteps: &[f32],
        conditioning: &Conditioning,
        tap: &mut dyn Tap,
    ) -> Result<BlockIo> {
        self.transformer.embed(x, timesteps, conditioning, tap)
    }

    fn block_forward(&self, block: usize, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo> {
        self.transformer.block_forward(block, io, tap)
    }

    fn unembed(&self, io: &BlockIo, latent: (usize, usize), tap: &mut dyn Tap) -> Result<Array> {
        self.transformer.unembed(io, latent, tap)
    }

    fn decode(&self, latent: &Array) -> Result<Array> {
        self.vae.decode(latent)
    }

    fn encode(&self, image: &Array) -> Result<Array> {
        self.vae.encode(image)
    }

    fn weight(&self, layer: &LayerId) -> Result<Array> {
        self.transformer.weight(layer)
    }

    fn set_weight(&mut self, layer: &LayerId, weight: Array) -> Result<()> {
        self.transformer.set_weight(layer, weight)
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        export::checkpoint(&self.files, &self.transformer)
    }

    fn companions(&self, arrangement: Arrangement) -> Result<Companions> {
        export::companions(&self.files, &self.vae, self.transformer.config(), arrangement)
    }
}

/// Settings that suit a model which was trained on images of `side` pixels.
fn defaults(files: &ModelFiles, side: usize) -> Result<ModelDefaults> {
    // diffusers' guidance for the published models at their full size, DiffusionKit's at half of it, and what
    // `emoji-sd3` was trained for.
    let cfg_weight = match side {
        1024.. => 7.0,
        512.. => 5.0,
        _ => 4.0,
    };
    Ok(ModelDefaults {
        steps: 28,
        cfg_weight,
        shift: files.scheduler.as_deref().map_or(Ok(SHIFT), read_shift)?,
        image_size: (side, side),
        calibration_prompts: calibration_prompts(&files.root)?,
    })
}

/// The shift of Stable Diffusion 3 and 3.5, where no file says.
pub(super) const SHIFT: f32 = 3.0;

/// The shift in diffusers' `scheduler_config.json`.
fn read_shift(path: &Path) -> Result<f32> {
    const KIND: &str = "scheduler configuration";
    #[derive(Deserialize)]
    struct Scheduler {
        #[serde(default = "no_shift")]
        shift: f32,
    }
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let Scheduler { shift } = serde_json::from_slice(&text).map_err(|e| Error::malformed(KIND, path, e))?;
    if shift.is_finite() && shift > 0.0 {
        Ok(shift)
    } else {
        Err(Error::malformed(KIND, path, format!("`shift` is {shift}; expected a number above 0")))
    }
}

/// What diffusers takes where its configuration has no shift.
fn no_shift() -> f32 {
    1.0
}

/// `evaluator` inside a model's folder, or beside a single file.
pub(super) fn evaluator_folder(root: &Path) -> PathBuf {
    let folder = if root.is_dir() { root } else { root.parent().unwrap_or(root) };
    folder.join("evaluator")
}

/// `evaluator/prompts_calibration.txt` beside the model, one prompt a line, or prompts of our own.
fn calibration_prompts(root: &Path) -> Result<Vec<String>> {
    let path = evaluator_folder(root).join("prompts_calibration.txt");
    let text = if path.is_file() {
        std::fs::read_to_string(&path).map_err(Error::io("read", &path))?
    } else {
        PROMPTS.to_owned()
    };
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use taq_core::Identity;
    use taq_core::registry::{Kind, Registry};

    use super::*;

    fn load(settings: serde_json::Value) -> Result<Box<dyn Model>> {
        Registry::linked().unwrap().model("sd3", &settings)
    }

    fn golden(name: &str) -> String {
        format!("{}/../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn the_embedded_model_runs_from_prompt_to_image() {
        let model = load(json!({})).unwrap();
        let (spec, defaults) = (model.spec(), model.defaults());
        assert_eq!((spec.name.as_str(), spec.blocks.len(), spec.layers().count()), ("emoji-sd3", 6, 69));
        assert_eq!((spec.latent_channels, spec.vae_factor, spec.patch_size), (16, 4, 2));
        assert_eq!((defaults.steps, defaults.cfg_weight, defaults.shift), (28, 4.0, 3.0));
        assert_eq!(defaults.image_size, (64, 64));
        assert_eq!(defaults.calibration_prompts.len(), 256);
        let evaluator = Evaluator::open(&model.evaluator().unwrap()).unwrap();
        assert_eq!((evaluator.image_size(), evaluator.labels().classes().len()), (Some((64, 64)), 1910));

        let c = model.condition(&["red heart".into(), String::new()]).unwrap();
        let x = mlx_rs::ops::zeros::<f32>(&[2, 16, 16, 16]).unwrap();
        let v = model.denoise(&x, &[900.0, 100.0], &c, &mut Identity).unwrap();
        assert_eq!(v.shape(), [2, 16, 16, 16]);
        let image = model.decode(&v).unwrap();
        assert_eq!(image.shape(), [2, 64, 64, 3]);
        let within = |x: &f32| (0.0..=1.0).contains(x);
        assert!(image.contiguous().unwrap().as_slice::<f32>().iter().all(within));
        assert_eq!(model.encode(&image).unwrap().shape(), [2, 16, 16, 16]);
    }

    #[test]
    fn a_fingerprint_is_of_the_contents() {
        let of = |settings| load(settings).unwrap().spec().fingerprint.clone();
        let first = of(json!({ "source": golden("tiny-sd3") }));
        let copy = tempfile::tempdir().unwrap();
        for component in
            ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "scheduler"]
        {
            let (from, to) = (golden("tiny-sd3"), copy.path().join(component));
            fs::create_dir(&to).unwrap();
            for file in fs::read_dir(Path::new(&from).join(component)).unwrap().map(Result::unwrap) {
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
        let source = copy.path().to_str().unwrap();
        assert_eq!(of(json!({ "source": source })), first, "elsewhere");
        assert_ne!(of(json!({ "source": source, "compat": "diffusionkit" })), first);
        assert_ne!(of(json!({ "source": source, "t5": "off" })), first);
        assert_ne!(of(json!({ "source": golden("tiny-sd35") })), first);

        let path = copy.path().join("vae/diffusion_pytorch_model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_ne!(of(json!({ "source": source })), first, "one bit of the VAE");
    }

    #[test]
    fn a_model_without_prompts_of_its_own_has_ours() {
        let prompts = load(json!({ "source": golden("tiny-sd3") })).unwrap().defaults().calibration_prompts;
        assert_eq!(prompts.len(), 20);
        assert_eq!(prompts.iter().collect::<std::collections::BTreeSet<_>>().len(), 20);
    }

    #[test]
    fn wrong_settings_and_schedules_are_refused() {
        let reason = |settings| load(settings).err().unwrap().to_string();
        assert!(reason(json!({ "sauce": "x" })).contains("model `sd3`: unknown field `sauce`"));
        assert!(reason(json!({ "compat": "mflux" })).contains("diffusionkit"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scheduler_config.json");
        let shift = |text: &str| {
            fs::write(&path, text).unwrap();
            read_shift(&path)
        };
        assert_eq!(shift("{}").unwrap(), 1.0);
        assert_eq!(shift(r#"{"shift": 2.5}"#).unwrap(), 2.5);
        assert!(shift(r#"{"shift": 0}"#).unwrap_err().to_string().contains("above 0"));
        assert!(shift(r#"{"shift": "3"}"#).is_err());
    }

    #[test]
    fn the_plugin_describes_its_settings() {
        let plugins = Registry::linked().unwrap();
        let schema = plugins.find(Kind::Model, "sd3").unwrap().settings();
        let text = schema.as_value().to_string();
        for word in ["source", "compat", "t5", "emoji-sd3", "diffusionkit"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
