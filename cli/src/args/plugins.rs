//! `taq plugins`.

use std::path::PathBuf;

use clap::ValueEnum;
use taq_core::registry::Kind;

/// Flags of `taq plugins`.
#[derive(Debug, clap::Args)]
#[command(
    about = "List plugins, describe one, or begin one of your own",
    visible_alias = "plugin",
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
                  taq plugins                    all of them\n  \
                  taq plugins rounder            one kind\n  \
                  taq plugins show adaround      what it does and its settings\n  \
                  taq plugins show adaround --json    the JSON schema of its settings\n  \
                  taq plugin new mine --kind policy --lang rust    a project to begin with"
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
    /// Begin a plugin: a small project that builds, has tests and runs in a pipeline as it is
    #[command(after_help = "Examples:\n  \
                            taq plugin new mine --kind policy --lang wat     one text file, no compiler needed\n  \
                            taq plugin new mine --kind policy --lang rust\n  \
                            taq plugin new mine --kind host                  a taq of one's own, with a rounder\n\n\
                            The README.md in the new folder tells how to build, test and measure it.")]
    New {
        /// Folder to create; its name becomes the project's
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,

        /// What to begin
        #[arg(long, value_enum)]
        kind: ProjectKind,

        /// Language to write it in [default: rust]
        #[arg(long, value_enum, alias = "language", value_name = "LANGUAGE")]
        lang: Option<Language>,
    },
}

/// What `taq plugin new` can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProjectKind {
    /// A bit policy as a WASM module, in rust, c, assemblyscript or wat
    Policy,
    /// A program like taq with plugins of any kind linked in, in rust
    Host,
}

/// A language that projects are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// Rust, for policies with the crate taq-policy
    Rust,
    /// C without a library
    C,
    /// AssemblyScript: TypeScript's syntax
    Assemblyscript,
    /// WebAssembly's text format, which taq reads as it is
    Wat,
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
