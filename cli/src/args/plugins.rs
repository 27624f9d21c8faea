//! `taq plugins`.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value};
use taq_core::registry::Kind;

use super::parse;

/// Flags of `taq plugins`.
#[derive(Debug, clap::Args)]
#[command(
    about = "List plugins, describe one, or begin one of your own",
    visible_alias = "plugin",
    override_usage = "taq plugins [OPTIONS] [KIND]\n       taq plugins [OPTIONS] <COMMAND>",
    after_help = "Examples:\n  \
                  taq plugins                    all of them\n  \
                  taq plugins rounder            one kind\n  \
                  taq plugins show adaround      what it does and its settings\n  \
                  taq plugins show adaround --json    the JSON schema of its settings\n  \
                  taq plugins --plugin ./libmine.so     with those of a native library\n  \
                  taq plugins check ./libmine.so        does it keep to what taq expects?\n  \
                  taq plugin new mine --kind rounder --lang rust    a project to begin with"
)]
pub(crate) struct PluginsArgs {
    /// Only plugins of this kind
    #[arg(value_enum, value_name = "KIND")]
    pub(crate) kind: Option<KindChoice>,

    /// Print JSON, with the schema of each plugin's settings and the whole hash of libraries
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
    #[command(after_help = crate::commands::new_plugin_examples())]
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
    /// Check a native library: what it is, what it offers, and each of its plugins by the conformance suite of its kind
    #[command(after_help = "Examples:\n  taq plugins check ./libmine.so\n  \
                            taq plugins check ./libmine.so --config '{\"my-rounder\": {\"iters\": 20}}'\n\n\
                            The library is loaded, and its code runs: only check what you would also run.")]
    Check {
        /// Native library
        #[arg(value_name = "LIBRARY")]
        library: PathBuf,

        /// Settings to check with: an object with the settings of each plugin under its name [default: theirs]
        #[arg(long, value_name = "JSON", value_parser = parse::settings)]
        config: Option<Map<String, Value>>,

        /// How long loading the library, and each of the checks, may take
        #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
        timeout: u64,
    },
}

/// What `taq plugin new` can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProjectKind {
    /// A bit policy as a WASM module
    Policy,
    /// A rounder of weights as a native library
    Rounder,
    /// An observer of activations as a native library
    Observer,
    /// A program like taq with plugins of any kind linked in
    Host,
}

/// A language that projects are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// Rust, with the crates taq-policy and taq-plugin
    Rust,
    /// C: policies without a library, others with the header taq_plugin.h
    C,
    /// Zig, with the header taq_plugin.h
    Zig,
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
