//! The pipeline manifest (`taq run pipeline.toml`): which plugins, which settings, which stages.
//!
//! Each stage is a table; a table that is absent is a stage that is not run. The same settings are the flags of
//! the stage's subcommand. A field that taq does not know is an error, so that a typo cannot pass unseen.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::quant::Granularity;
use crate::registry::is_path;
use crate::{BlockId, Error, Result};

/// A plugin by name, with its settings beside the name: `{ name = "adaround", iters = 500 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PluginChoice {
    /// Registered name.
    pub name: String,
    /// The plugin's own settings; `taq plugins show NAME` lists them.
    #[serde(flatten)]
    pub settings: serde_json::Map<String, Value>,
}

impl PluginChoice {
    /// A plugin with its default settings.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), settings: serde_json::Map::new() }
    }

    /// The settings as one JSON value.
    pub fn settings(&self) -> Value {
        Value::Object(self.settings.clone())
    }
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Prompts {
    /// A text file with one prompt a line, or a csv file whose column `prompt` (or first column) has them.
    File(PathBuf),
    /// The prompts themselves.
    List(Vec<String>),
}

/// How calibration samples are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// Every step of every image, one npz each.
    #[default]
    EveryStep,
    /// TaQ-DiT's: trajectories of 100 steps without images, 25 timesteps chosen uniformly, all shuffled into one
    /// `DiT_cali_data.npz`.
    TaqDit,
}

/// Settings of `calibrate`: full-precision trajectories of the model's own sampler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CalibrateSettings {
    /// How samples are chosen.
    pub recipe: Recipe,
    /// Images (trajectories); TaQ-DiT's recipe: 256. Prompts are used in turn.
    pub num_images: usize,
    /// Steps of the sampler; default: the model's (TaQ-DiT's recipe: 100).
    pub num_steps: Option<usize>,
    /// Classifier-free guidance weight, 0 to switch it off; default: the model's (TaQ-DiT's recipe: 1.5).
    pub cfg_weight: Option<f32>,
    /// Prompts; default: the list that comes with the model.
    pub prompts: Option<Prompts>,
    /// Height and width of the image in pixels; default: the model's.
    pub image_size: Option<(usize, usize)>,
    /// Images in one forward pass.
    pub batch_size: usize,
    /// Timesteps to keep of each trajectory (TaQ-DiT's recipe only).
    pub num_selected_steps: usize,
    /// Whether each sample also holds `conditioning` and `pooled_conditioning`.
    pub save_conditioning: bool,
    /// Whether final latents are decoded and kept as PNG.
    pub save_images: bool,
}

impl Default for CalibrateSettings {
    fn default() -> Self {
        Self {
            recipe: Recipe::EveryStep,
            num_images: 16,
            num_steps: None,
            cfg_weight: None,
            prompts: None,
            image_size: None,
            batch_size: 8,
            num_selected_steps: 25,
            save_conditioning: false,
            save_images: true,
        }
    }
}

/// Settings of `observe`: statistics of every layer's input at every timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObserveSettings {
    /// The observer whose ranges plans are made from.
    pub observer: PluginChoice,
    /// Further observers, whose ranges are kept beside for comparison.
    pub beside: Vec<PluginChoice>,
    /// Images to look at, from the first; default: all.
    pub num_images: Option<usize>,
    /// Every so many of the kept timesteps.
    #[schemars(range(min = 1))]
    pub stride: usize,
    /// Layers to look at, by id, by the beginning of ids (`mm0.img`) or `all`; default: all. A plan needs all.
    pub layers: Option<Vec<String>>,
    /// Images in one forward pass; also the batch that running averages are taken over.
    pub batch_size: usize,
    /// Bins of the histogram of each layer at each timestep; 0 for none.
    pub hist_bins: usize,
    /// Weight of the past in the shift of post-GELU inputs, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub shift_momentum: f32,
}

impl Default for ObserveSettings {
    fn default() -> Self {
        Self {
            observer: PluginChoice::named("avg-minmax"),
            beside: Vec::new(),
            num_images: None,
            stride: 1,
            layers: None,
            batch_size: 8,
            hist_bins: 256,
            shift_momentum: 0.95,
        }
    }
}

/// Settings of `sensitivity`: how much the model's output suffers when one layer alone is quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SensitivitySettings {
    /// Images to measure on, from the first; default: 2, or all if fewer are calibrated.
    pub num_images: Option<usize>,
    /// Every so many of the kept timesteps.
    #[schemars(range(min = 1))]
    pub stride: usize,
    /// Widths to try for every weight, 2 to 8 each; none: weights are left out.
    pub weight_bits: Vec<u8>,
    /// Widths to try for every layer's input, 2 to 8 each; none: inputs are left out.
    pub activation_bits: Vec<u8>,
}

impl Default for SensitivitySettings {
    fn default() -> Self {
        Self { num_images: None, stride: 3, weight_bits: vec![2, 3, 4, 6, 8], activation_bits: vec![4, 6, 8] }
    }
}

/// Settings of `decide`: statistics to plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecideSettings {
    /// The bit policy.
    pub policy: PluginChoice,
}

impl Default for DecideSettings {
    fn default() -> Self {
        Self { policy: PluginChoice::named("baseline-a8") }
    }
}

/// Settings of `cache`: what goes in and out of every block, on disk. `round` does without; see there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// Images, from the first; default: all.
    pub num_images: Option<usize>,
    /// Every so many of the kept timesteps.
    #[schemars(range(min = 1))]
    pub stride: usize,
    /// Blocks to keep; default: all.
    pub blocks: Option<Vec<BlockId>>,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { num_images: None, stride: 1, blocks: None }
    }
}

/// What a rounder makes small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The mean squared error of a block's outputs.
    Mse,
    /// The same, each channel at each timestep weighted by how much the model's output feels it (BRECQ's Fisher
    /// information).
    Fisher,
    /// The mean squared error, and that of the guided output: what both branches of classifier-free guidance do not share
    /// is amplified by the sampler. Without guidance: `mse`.
    #[default]
    Guided,
    /// Both: the guided error, weighted.
    GuidedFisher,
}

impl Loss {
    /// Whether channels are weighted.
    pub fn weighted(self) -> bool {
        matches!(self, Self::Fisher | Self::GuidedFisher)
    }

    /// Whether the guided output counts.
    pub fn guided(self) -> bool {
        matches!(self, Self::Guided | Self::GuidedFisher)
    }
}

/// Settings of `round`: the integers of the weights, block by block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RoundSettings {
    /// The rounder.
    pub rounder: PluginChoice,
    /// Bits of every weight; default: the plan's.
    pub bits_w: Option<u8>,
    /// Bits of every input at every timestep; default: the plan's.
    pub bits_a: Option<u8>,
    /// Bits of the weights whose input is not quantized, modulation and embeddings, rounded to nearest in groups of 64;
    /// default: they stay in full precision.
    pub weight_only_bits: Option<u8>,
    /// What shares a step size.
    pub granularity: Granularity,
    /// Whether grids are symmetric around 0, without zero points.
    pub symmetric: bool,
    /// Calibration rows (an image at a timestep, with and without its prompt) to learn from, chosen over all images and
    /// timesteps.
    pub rows: usize,
    /// Further rows, of other images, that only judge the result.
    pub held_out_rows: usize,
    /// What is made small, and what held-out errors are given in.
    pub loss: Loss,
    /// Blocks to round; the others keep full precision. Default: all.
    pub blocks: Option<Vec<BlockId>>,
    /// Folder of a cache (`taq cache`) to learn from; default: boundaries are computed as they are needed.
    pub cache: Option<PathBuf>,
    /// Memory that what goes between two blocks may take, in units of 10⁹ bytes; three such are held at a time. Larger ones are
    /// kept in memory-mapped files in the run folder.
    #[schemars(range(min = 0.0))]
    pub memory_gb: f64,
}

impl Default for RoundSettings {
    fn default() -> Self {
        Self {
            rounder: PluginChoice::named("adaround"),
            bits_w: None,
            bits_a: None,
            weight_only_bits: None,
            granularity: Granularity::Channel,
            symmetric: false,
            rows: 1024,
            held_out_rows: 32,
            loss: Loss::default(),
            blocks: None,
            cache: None,
            memory_gb: 2.0,
        }
    }
}

/// What `generate` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The model as it is: what the others are measured against.
    FullPrecision,
    /// The plan, with every weight rounded to nearest.
    Nearest,
    /// The plan, with the weights that `round` chose.
    Quantized,
}

/// An image to begin from (SDEdit, Meng et al., arXiv 2108.01073).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartImage {
    /// A PNG file; every prompt begins from it.
    pub image: PathBuf,
    /// How much of the schedule is run, more than 0 and at most 1: at 1 nothing is left of the image, as less is run
    /// more of it stays.
    #[serde(default = "StartImage::default_strength")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub strength: f32,
}

impl StartImage {
    /// The strength unless another is asked for: diffusers' for SD3.
    pub fn default_strength() -> f32 {
        0.6
    }
}

/// Settings of `generate`: images of the quantized model, measured against full precision at the same seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateSettings {
    /// Prompts; calibration should not have seen them. Default: the first calibration prompts of the model.
    pub prompts: Option<Prompts>,
    /// Start latents: a safetensors file with one tensor `[images, channels, h, w]`, f32, in place of seeded noise.
    pub noise: Option<PathBuf>,
    /// What guidance leads away from; default: the empty prompt. Without guidance it has no effect.
    pub negative_prompt: Option<String>,
    /// Begin from an image in place of noise alone.
    pub img2img: Option<StartImage>,
    /// Steps of the sampler; default: the calibration's, since the plan is made for its timesteps.
    pub num_steps: Option<usize>,
    /// Classifier-free guidance weight, 0 to switch it off; default: the calibration's.
    pub cfg_weight: Option<f32>,
    /// Whether every token of a quantized layer's input brings its own step size, in place of the plan's by layer and
    /// timestep; bits and shifts stay the plan's.
    pub dynamic: bool,
    /// Height and width of the image in pixels; default: the start image's, else the calibration's.
    pub image_size: Option<(usize, usize)>,
    /// Images in one forward pass.
    pub batch_size: usize,
    /// What to run; default: full precision, and what the run folder has the files for.
    pub variants: Option<Vec<Variant>>,
    /// Folder of an evaluator (`classifier.onnx` and `labels.json`), for prompt accuracy; default: the model's own,
    /// if it brings one.
    pub evaluator: Option<PathBuf>,
}

impl Default for GenerateSettings {
    fn default() -> Self {
        Self {
            prompts: None,
            noise: None,
            negative_prompt: None,
            img2img: None,
            num_steps: None,
            cfg_weight: None,
            dynamic: false,
            image_size: None,
            batch_size: 8,
            variants: None,
            evaluator: None,
        }
    }
}

/// A whole pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// The run folder; relative to the current folder.
    pub output: PathBuf,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Native libraries with plugins that the manifest names.
    #[serde(default)]
    pub plugins: Vec<PathBuf>,
    /// The model.
    #[serde(default = "default_model")]
    pub model: PluginChoice,
    /// The sampler.
    #[serde(default = "default_sampler")]
    pub sampler: PluginChoice,
    /// Trajectories.
    pub calibrate: Option<CalibrateSettings>,
    /// Statistics.
    pub observe: Option<ObserveSettings>,
    /// Sensitivities, for policies that use them.
    pub sensitivity: Option<SensitivitySettings>,
    /// Plan.
    pub decide: Option<DecideSettings>,
    /// Block boundaries on disk.
    pub cache: Option<CacheSettings>,
    /// Weights.
    pub round: Option<RoundSettings>,
    /// Images and report.
    pub generate: Option<GenerateSettings>,
}

fn default_model() -> PluginChoice {
    PluginChoice::named("sd3")
}

fn default_sampler() -> PluginChoice {
    PluginChoice::named("euler")
}

impl Pipeline {
    /// Reads a manifest. Paths of libraries, prompts, noise, evaluator and policies in it are relative to the manifest's folder.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let mut pipeline: Self =
            toml::from_str(&text).map_err(|e| Error::malformed("pipeline manifest", path, e))?;
        let base = path.parent().unwrap_or(Path::new(""));
        pipeline.plugins.iter_mut().for_each(|library| *library = base.join(&*library));
        let calibrate = pipeline.calibrate.as_mut().and_then(|s| s.prompts.as_mut());
        if let Some(generate) = &mut pipeline.generate {
            let start = generate.img2img.as_mut().map(|start| &mut start.image);
            let paths = [generate.noise.as_mut(), generate.evaluator.as_mut(), start];
            paths.into_iter().flatten().for_each(|path| *path = base.join(&*path));
        }
        if let Some(decide) = &mut pipeline.decide
            && is_path(&decide.policy.name)
        {
            decide.policy.name = base.join(&decide.policy.name).to_string_lossy().into_owned();
        }
        let cache = pipeline.round.as_mut().and_then(|s| s.cache.as_mut());
        cache.into_iter().for_each(|folder| *folder = base.join(&*folder));
        let generate = pipeline.generate.as_mut().and_then(|s| s.prompts.as_mut());
        for prompts in calibrate.into_iter().chain(generate) {
            if let Prompts::File(file) = prompts {
                *file = base.join(&*file);
            }
        }
        Ok(pipeline)
    }
}
