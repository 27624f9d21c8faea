//! Built-in bit policies: the crates in `policies/`, which are also built as WASM modules.

use serde::Serialize;
use serde_json::{Map, Value};
use taq_core::{BitPolicy, Error, PolicyError, PolicyPlan, PolicyRequest, Result, register};
use taq_policy_baseline_a8 as baseline_a8;
use taq_policy_budget as budget;
use taq_policy_multitier as multitier;

/// A policy of the SDK's shape, with its settings: a built-in answers the same request as its WASM module
/// would.
struct Linked {
    name: &'static str,
    settings: Map<String, Value>,
    assign: fn(&PolicyRequest) -> std::result::Result<PolicyPlan, PolicyError>,
}

impl Linked {
    /// Refuses settings that no request can make right, so that the user hears of them before the work
    /// begins.
    fn new<S: Serialize>(
        name: &'static str,
        settings: &S,
        check: fn(&S) -> std::result::Result<(), PolicyError>,
        assign: fn(&PolicyRequest) -> std::result::Result<PolicyPlan, PolicyError>,
    ) -> Result<Self> {
        check(settings).map_err(|e| refused(name, e))?;
        match serde_json::to_value(settings) {
            Ok(Value::Object(settings)) => Ok(Self { name, settings, assign }),
            Ok(other) => Err(refused(name, format!("they are not an object but {other}"))),
            Err(e) => Err(refused(name, e)),
        }
    }
}

impl BitPolicy for Linked {
    fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        let request = PolicyRequest { settings: self.settings.clone(), ..request.clone() };
        (self.assign)(&request).map_err(|e| refused(self.name, e))
    }
}

fn refused(name: &str, reason: impl std::fmt::Display) -> Error {
    Error::settings(format!("policy `{name}`"), reason)
}

register!(
    Policy,
    "baseline-a8",
    baseline_a8::Settings,
    |settings| Linked::new("baseline-a8", &settings, baseline_a8::Settings::check, baseline_a8::assign),
    "The same bits everywhere (W4A8 unless told otherwise), shifts for post-GELU inputs."
);

register!(
    Policy,
    "multitier",
    multitier::Settings,
    |settings| Linked::new("multitier", &settings, multitier::Settings::check, multitier::assign),
    "A4, A6 or A8 by layer and timestep, from clipping magnitudes and outliers."
);

register!(
    Policy,
    "budget",
    budget::Settings,
    |settings| Linked::new("budget", &settings, budget::Settings::check, budget::assign),
    "The smallest predicted error for a given average of bits, weight bytes or bit operations."
);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use taq_core::Role;
    use taq_core::registry::{Kind, Registry};
    use taq_core::testing;

    use super::*;

    fn refusal(name: &str, settings: &Value) -> String {
        Registry::linked().unwrap().policy(name, settings).map(|_| ()).unwrap_err().to_string()
    }

    fn request() -> PolicyRequest {
        let layers = vec![testing::layer("a", Role::Q, 8, 8), testing::layer("b", Role::Fc2, 8, 8)];
        PolicyRequest::new("toy", layers, testing::timesteps(3))
    }

    #[test]
    fn baseline_a8_gives_every_layer_the_same_bits_and_fc2_a_shift() {
        let policy = Registry::linked().unwrap().policy("baseline-a8", &json!({ "bits_w": 5 })).unwrap();
        let plan = policy.assign(&request()).unwrap();
        assert_eq!(plan.layers.len(), 2);
        assert_eq!(plan.layers[0].activation_bits, [8, 8, 8]);
        assert_eq!(plan.layers[0].weight_bits, 5);
        assert_eq!(plan.layers.iter().map(|l| l.shift).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn settings_are_refused_when_the_policy_is_made() {
        assert!(
            refusal("baseline-a8", &json!({ "bits_a": 9 }))
                .contains("policy `baseline-a8`: bits_a must be 2 to 8, not 9")
        );
        for name in ["baseline-a8", "budget", "multitier"] {
            let message = refusal(name, &json!({ "bits_x": 9 }));
            assert!(message.contains(&format!("policy `{name}`: unknown field `bits_x`")), "{message}");
        }
        let message = refusal("budget", &json!({ "average_weight_bits": 1 }));
        assert!(message.contains("policy `budget`: average_weight_bits must be at least"), "{message}");
    }

    #[test]
    fn what_a_policy_misses_is_said_in_its_name() {
        let policy = Registry::linked().unwrap().policy("multitier", &Value::Null).unwrap();
        let message = policy.assign(&request()).unwrap_err().to_string();
        assert!(
            message.contains("policy `multitier`: statistics of 2 layers are needed, found 0"),
            "{message}"
        );
    }

    #[test]
    fn defaults_and_descriptions_are_those_of_the_crates() {
        let registry = Registry::linked().unwrap();
        for info in [baseline_a8::info(), budget::info(), multitier::info()] {
            let plugin = registry.find(Kind::Policy, &info.name).unwrap();
            assert_eq!(plugin.summary, info.summary);
            let schema = plugin.settings().to_value();
            for (field, about) in schema["properties"].as_object().unwrap() {
                assert!(about["description"].is_string(), "{}: {field}", info.name);
            }
        }
    }
}
