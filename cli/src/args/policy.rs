//! `taq policy`: for those who write bit policies.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{SessionArgs, parse};

/// Flags of `taq policy`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Look into bit policies, run them, and compare their plans",
    long_about = "For those who write bit policies, as WASM modules or in Rust: what a policy is told (request), what a \
                  module says of itself (inspect), what it decides (run), and how two plans differ (diff). \
                  docs/abi/policy-v1.md tells how a module is written, `taq plugin new` begins one.",
    after_help = "Examples:\n  \
                  taq policy inspect mine.wasm\n  \
                  taq policy request --run runs/a > request.json\n  \
                  taq policy run mine.wasm --request request.json > plan.json\n  \
                  taq policy run baseline-a8 --config '{\"bits_a\": 6}' --run runs/a > other.json\n  \
                  taq policy diff plan.json other.json"
)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

/// Subcommands of `taq policy`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show what a WASM module says of itself, its imports, exports and limits; `assign` is not run
    #[command(after_help = "Example:\n  taq policy inspect policies/baseline-a8/baseline-a8.wasm")]
    Inspect {
        /// WASM module (.wasm, or .wat as text)
        #[arg(value_name = "FILE")]
        module: PathBuf,
    },
    /// Print what a policy is told of a run, as JSON; needs `taq observe`
    #[command(after_help = "Example:\n  taq policy request --run runs/a > request.json")]
    Request {
        /// Include the statistics of every channel
        #[arg(long)]
        per_channel: bool,

        #[command(flatten)]
        session: SessionArgs,
    },
    /// Run a policy and print its plan as JSON; nothing is written to the run folder
    #[command(after_help = "Examples:\n  \
                            taq policy run mine.wasm --run runs/a\n  \
                            taq policy run multitier --request request.json --config '{\"bits_w\": 3}'")]
    Run(PolicyRunArgs),
    /// Run a folder of cases: NAME.request.json with NAME.plan.json or NAME.error.txt
    #[command(after_help = "Examples:\n  \
                            taq policy test mine.wasm tests/cases\n  \
                            taq policy test mine.wasm tests/cases --bless    takes today's plans as the expected ones")]
    Test {
        /// Name of a policy, or path of a WASM module
        #[arg(value_name = "POLICY")]
        policy: String,

        /// Folder of the cases
        #[arg(value_name = "FOLDER")]
        cases: PathBuf,

        /// Write the expectations instead of checking them
        #[arg(long)]
        bless: bool,
    },
    /// Time policies on a request, side by side
    #[command(
        after_help = "Example:\n  taq policy bench multitier policies/multitier/multitier.wasm --request request.json"
    )]
    Bench {
        /// Names of policies, or paths of WASM modules
        #[arg(value_name = "POLICY", required = true)]
        policies: Vec<String>,

        /// What the policy is told (`taq policy request`)
        #[arg(long, value_name = "FILE")]
        request: PathBuf,

        /// Settings of the policy: a JSON object or a .json file
        #[arg(long, value_name = "JSON", value_parser = parse::settings)]
        config: Option<Map<String, Value>>,

        /// Runs to time
        #[arg(long, value_name = "N", default_value = "20", value_parser = parse::count)]
        runs: usize,
    },
    /// Compare two plans layer by layer and in average bits
    #[command(after_help = "Example:\n  taq policy diff plan.json other.json")]
    Diff {
        /// Plan, as `taq policy run` prints it
        #[arg(value_name = "PLAN")]
        first: PathBuf,

        /// The plan to compare it with
        #[arg(value_name = "OTHER")]
        second: PathBuf,
    },
}

/// Flags of `taq policy run`.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyRunArgs {
    /// Name of a policy, or path of a WASM module
    #[arg(value_name = "POLICY")]
    pub(crate) policy: String,

    /// What the policy is told, from a file instead of a run folder
    #[arg(long, value_name = "FILE", alias = "stats")]
    pub(crate) request: Option<PathBuf>,

    /// Settings of the policy: a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings, alias = "policy-config")]
    pub(crate) config: Option<Map<String, Value>>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}
