//! `taq round`.

use std::path::PathBuf;

use serde_json::{Map, Value};
use taq_core::manifest::{Loss, PluginChoice, RoundSettings};
use taq_core::quant::Granularity;
use taq_core::registry::{Kind, Registry};
use taq_core::{Error, Result};

use super::{SessionArgs, parse, session};

/// Flags of `taq round`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Stage 4: choose the integers of the weights, block by block",
    long_about = "Stage 4: chooses the integers of the weights, block by block: quantized_weights/. A killed run \
                  goes on with the first block that is not there. Needs `taq decide`.",
    after_help = "Examples:\n  \
                  taq round --run runs/a                                   every block, AdaRound\n  \
                  taq round --run runs/a --rounder nearest --bits-w 4\n  \
                  taq round --run runs/a --blocks mm0,mm1 --iters 500      two blocks, a quick look\n  \
                  taq plugins show adaround                                the rounder's own settings"
)]
pub(crate) struct RoundArgs {
    /// Rounder [default: adaround]
    #[arg(long, value_name = "NAME")]
    rounder: Option<String>,

    /// How much is learned; --iters, --batch-size and --rows go before it [default: what
    /// the rounder does, `taq plugins show NAME`]
    #[arg(long, value_name = "PRESET")]
    preset: Option<Preset>,

    /// Settings of the rounder (`taq plugins show NAME`): a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    rounder_config: Option<Map<String, Value>>,

    /// Iterations a block, the rounder's setting `iters`
    #[arg(long, value_name = "N", value_parser = parse::count)]
    iters: Option<usize>,

    /// Rows in one iteration, the rounder's setting `batch_size`
    #[arg(long, value_name = "N", value_parser = parse::count)]
    batch_size: Option<usize>,

    /// Bits of every weight, 2 to 8 [default: the plan's]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=8))]
    bits_w: Option<u8>,

    /// Bits of every input at every timestep, 2 to 8 [default: the plan's]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=8))]
    bits_a: Option<u8>,

    /// Bits of the other weights, modulation and embeddings, whose input is not quantized: a third of SD3's weights, 2 to 8
    /// [default: full precision]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=8))]
    weight_only_bits: Option<u8>,

    /// Neighbouring inputs that share a step size [default: a whole output channel]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    group_size: Option<usize>,

    /// Use grids that are symmetric around 0 instead of ones with a zero point
    #[arg(long)]
    symmetric: bool,

    /// Error that is made small [default: guided]
    #[arg(long, value_name = "LOSS")]
    loss: Option<LossChoice>,

    /// Blocks to round, such as mm0,mm1; the others keep full precision [default: all]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    blocks: Option<Vec<String>>,

    /// Calibration rows (an image at a timestep, with and without its prompt) to learn from [default: 1024, or all]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    rows: Option<usize>,

    /// Further rows, of other images, that only judge the result [default: 32]
    #[arg(long, value_name = "N")]
    held_out_rows: Option<usize>,

    /// Folder of a cache (`taq cache`) to learn from [default: block inputs are computed as they are needed]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Memory for what goes between two blocks, in GB (three such are held at a time); larger ones are kept in
    /// memory-mapped files in the run folder [default: 2]
    #[arg(long, value_name = "GB", value_parser = parse::not_negative)]
    memory_gb: Option<f32>,

    /// Draw losses, held-out errors and the integers of every layer when done: activations/plots/
    #[arg(long)]
    pub(crate) plots: bool,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// Iterations, rows in each, and rows to choose them from.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Preset {
    /// 200 iterations of 8 rows out of 1,024: minutes on the small model
    Fast,
    /// 20,000 iterations of 32 rows out of 4,096, as TaQ-DiT's authors: for a GPU
    Full,
}

impl Preset {
    fn amount(self) -> (usize, usize, usize) {
        match self {
            Self::Fast => (200, 8, 1024),
            Self::Full => (20_000, 32, 4096),
        }
    }
}

/// The losses, as flags know them.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LossChoice {
    /// The mean squared error of a block's outputs
    Mse,
    /// The same, each channel at each timestep weighted by how much the model's output feels it
    Fisher,
    /// The mean squared error, and that of the guided output
    Guided,
    /// The guided error, weighted
    GuidedFisher,
}

impl LossChoice {
    fn loss(self) -> Loss {
        match self {
            Self::Mse => Loss::Mse,
            Self::Fisher => Loss::Fisher,
            Self::Guided => Loss::Guided,
            Self::GuidedFisher => Loss::GuidedFisher,
        }
    }
}

impl RoundArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self, registry: &Registry) -> Result<RoundSettings> {
        let default = RoundSettings::default();
        let mut rounder = session::choose(
            registry,
            Kind::Rounder,
            self.rounder.as_deref(),
            self.rounder_config.as_ref(),
            default.rounder,
        )?;
        let preset = self.preset.map(Preset::amount);
        let numbers = [("--iters", "iters", self.iters), ("--batch-size", "batch_size", self.batch_size)];
        for ((flag, name, value), preset) in
            numbers.into_iter().zip([preset.map(|p| p.0), preset.map(|p| p.1)])
        {
            let flag = if value.is_some() { flag } else { "--preset" };
            set(registry, &mut rounder, flag, name, value.or(preset))?;
        }
        Ok(RoundSettings {
            rounder,
            bits_w: self.bits_w,
            bits_a: self.bits_a,
            weight_only_bits: self.weight_only_bits,
            granularity: self.group_size.map_or(default.granularity, Granularity::Group),
            symmetric: self.symmetric,
            rows: self.rows.or(preset.map(|p| p.2)).unwrap_or(default.rows),
            held_out_rows: self.held_out_rows.unwrap_or(default.held_out_rows),
            loss: self.loss.map_or(default.loss, LossChoice::loss),
            blocks: parse::blocks(self.blocks.as_deref()),
            cache: self.cache.clone(),
            memory_gb: self.memory_gb.map_or(default.memory_gb, f64::from),
        })
    }
}

/// Puts a flag among the rounder's own settings, if its schema has such a setting.
fn set(
    registry: &Registry,
    rounder: &mut PluginChoice,
    flag: &str,
    name: &str,
    value: Option<usize>,
) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let schema = registry.find(Kind::Rounder, &rounder.name)?.settings();
    let known = schema.get("properties").and_then(Value::as_object);
    if !known.is_some_and(|k| k.contains_key(name)) {
        let owner = format!("{flag}: rounder `{}`", rounder.name);
        let known: Vec<&str> = known.into_iter().flat_map(|k| k.keys().map(String::as_str)).collect();
        let has =
            if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
        return Err(Error::settings(owner, format!("there is no setting `{name}`; {has}")));
    }
    rounder.settings.insert(name.to_owned(), value.into());
    Ok(())
}
