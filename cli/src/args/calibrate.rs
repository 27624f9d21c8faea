//! `taq calibrate`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::manifest::{CalibrateSettings, Prompts, Recipe};

use super::{SessionArgs, parse};

/// Flags of `taq calibrate`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Stage 1: record full-precision trajectories of the sampler",
    long_about = "Stage 1: records full-precision trajectories of the sampler into the run folder: every latent \
                  with its timestep (samples/, npz), the final latents and, on request, images.",
    after_help = "Examples:\n  \
                  taq calibrate --num-images 16 --dry-run              how much would it write?\n  \
                  taq calibrate --num-images 16 --run runs/a           28 steps, CFG 4 (the emoji model's)\n  \
                  taq calibrate --num-images 32 --run runs/a           16 more: the first 16 are kept\n  \
                  taq calibrate --prompts prompts.csv --num-steps 20 --cfg-weight 1.5\n  \
                  taq calibrate --recipe taq-dit --num-trajectories 256"
)]
pub(crate) struct CalibrateArgs {
    /// Images (trajectories) to record; prompts are used in turn [default: 16]
    #[arg(long, value_name = "N", value_parser = parse::count, visible_alias = "num-trajectories")]
    num_images: Option<usize>,

    /// Steps of the sampler [default: the model's; taq-dit: 100]
    #[arg(long, value_name = "N", value_parser = parse::count, visible_alias = "steps")]
    num_steps: Option<usize>,

    /// Classifier-free guidance weight, 0 to switch it off [default: the model's; taq-dit: 1.5]
    #[arg(long, value_name = "W", value_parser = parse::not_negative, visible_alias = "cfg")]
    cfg_weight: Option<f32>,

    /// Prompts: a text file with one a line, or a csv file (column `prompt`, else the first) [default: the
    /// list that comes with the model]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Pixels of the image: 64, or 64x96 (height x width) [default: the model's]
    #[arg(long, value_name = "SIZE", value_parser = parse::image_size)]
    image_size: Option<(usize, usize)>,

    /// Images in one forward pass [default: 8]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    batch_size: Option<usize>,

    /// Which samples to keep [default: every-step]
    #[arg(long, value_enum, value_name = "RECIPE")]
    recipe: Option<RecipeChoice>,

    /// Timesteps to keep of each trajectory, taq-dit only [default: 25]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    num_selected_steps: Option<usize>,

    /// Keep the prompt's embedding in every sample (conditioning, pooled_conditioning)
    #[arg(long)]
    save_conditioning: bool,

    /// Do not decode the final latents to PNG
    #[arg(long)]
    no_images: bool,

    /// Print how much would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// Which samples to keep.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RecipeChoice {
    /// Every step of every image, one npz each
    EveryStep,
    /// TaQ-DiT's: timesteps chosen uniformly from 100, shuffled into one DiT_cali_data.npz
    TaqDit,
}

impl CalibrateArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self) -> CalibrateSettings {
        let default = CalibrateSettings::default();
        CalibrateSettings {
            recipe: match self.recipe {
                Some(RecipeChoice::EveryStep) => Recipe::EveryStep,
                Some(RecipeChoice::TaqDit) => Recipe::TaqDit,
                None => default.recipe,
            },
            num_images: self.num_images.unwrap_or(default.num_images),
            num_steps: self.num_steps,
            cfg_weight: self.cfg_weight,
            prompts: self.prompts.clone().map(Prompts::File),
            image_size: self.image_size,
            batch_size: self.batch_size.unwrap_or(default.batch_size),
            num_selected_steps: self.num_selected_steps.unwrap_or(default.num_selected_steps),
            save_conditioning: self.save_conditioning,
            save_images: !self.no_images,
        }
    }
}
