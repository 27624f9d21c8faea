//! `taq decide`.

use serde_json::{Map, Value};
use taq_core::Result;
use taq_core::manifest::DecideSettings;
use taq_core::registry::{Kind, Registry};

use super::{SessionArgs, parse, session};

/// Flags of `taq decide`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Stage 3: let a policy decide how many bits each layer gets, and when",
    long_about = "Stage 3: hands the statistics to a bit policy and writes its plan with the numbers filled in: \
                  activations/quant_config.json, and beside it activations/layer_temporal_analysis.json (docs/statistics.md): \
                  how layers change over time, where a shift or SmoothQuant helps, outlier channels. Needs `taq observe`.",
    after_help = "Examples:\n  \
                  taq decide --run runs/a                  the default policy\n  \
                  taq decide --run runs/a --policy-config '{\"bits_a\": 6}'\n  \
                  taq decide --run runs/a --policy ./mine.wasm\n  \
                  taq plugins policy                       the policies of this program"
)]
pub(crate) struct DecideArgs {
    /// Bit policy: a name, or the path of a WASM module (.wasm, or .wat as text) [default: baseline-a8]
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,

    /// Settings of the policy (`taq plugins show NAME`): a JSON object or a .json file
    #[arg(long, value_name = "JSON", value_parser = parse::settings)]
    policy_config: Option<Map<String, Value>>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

impl DecideArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self, registry: &Registry) -> Result<DecideSettings> {
        Ok(DecideSettings {
            policy: session::choose(
                registry,
                Kind::Policy,
                self.policy.as_deref(),
                self.policy_config.as_ref(),
                DecideSettings::default().policy,
            )?,
        })
    }
}
