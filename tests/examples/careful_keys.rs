//! The policy of the README: a bit policy and a host that knows it, in one file.

use taq_core::{BitPolicy, LayerPlan, PolicyPlan, PolicyRequest, Result, Role, register};
use taq_plugins as _;

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {}

struct CarefulKeys;

impl BitPolicy for CarefulKeys {
    fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        let steps = request.timesteps.len();
        let bits = |role| if role == Role::K { 8 } else { 4 };
        let plan = |l: &taq_core::LayerSpec| LayerPlan::uniform(l.id.clone(), bits(l.role), 8, steps);
        Ok(PolicyPlan::new(request.layers.iter().map(plan).collect()))
    }
}

register!(Policy, "careful-keys", Settings, |_| Ok(CarefulKeys), "Eight-bit keys, four bits elsewhere.");

fn main() {
    taq_cli::main()
}
