//! `taq plugins`.

use clap::ValueEnum;
use taq_core::registry::Kind;

/// Flags of `taq plugins`.
#[derive(Debug, clap::Args)]
#[command(
    about = "List the plugins of this program, or describe one",
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
                  taq plugins                    all of them\n  \
                  taq plugins rounder            one kind\n  \
                  taq plugins show adaround      what it does and its settings\n  \
                  taq plugins show adaround --json    the JSON schema of its settings"
)]
pub(crate) struct PluginsArgs {
    /// Only plugins of this kind
    #[arg(value_enum, value_name = "KIND")]
    pub(crate) kind: Option<KindChoice>,

    /// Print JSON, with the schema of each plugin's settings
    #[arg(long)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Option<PluginsCommand>,
}

/// Subcommands of `taq plugins`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PluginsCommand {
    /// Describe one plugin: what it does, where it comes from, its settings
    #[command(
        after_help = "Examples:\n  taq plugins show adaround\n  taq plugins show policy/baseline-a8 --json"
    )]
    Show {
        /// Name, or kind/name where two kinds have one of that name
        #[arg(value_name = "NAME")]
        name: String,

        /// Print the JSON schema of the settings
        #[arg(long)]
        json: bool,
    },
}

/// A kind of plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindChoice {
    /// Diffusion transformers
    #[value(alias = "models")]
    Model,
    /// Samplers
    #[value(alias = "samplers")]
    Sampler,
    /// Observers of activations
    #[value(alias = "observers")]
    Observer,
    /// Bit policies
    #[value(alias = "policies")]
    Policy,
    /// Rounders of weights
    #[value(alias = "rounders")]
    Rounder,
}

impl From<KindChoice> for Kind {
    fn from(kind: KindChoice) -> Self {
        match kind {
            KindChoice::Model => Self::Model,
            KindChoice::Sampler => Self::Sampler,
            KindChoice::Observer => Self::Observer,
            KindChoice::Policy => Self::Policy,
            KindChoice::Rounder => Self::Rounder,
        }
    }
}
