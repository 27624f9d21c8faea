//! Any bytes as any document: they are read or refused, what is read is written and read again as the same, and a
//! plan of any content is checked against a request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use taq_core::pipeline::check_plan;
use taq_core::plan::QuantConfig;
use taq_core::{LayerSpec, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, Role, Stream, Timestep};

fuzz_target!(|data: &[u8]| {
    let Some((&kind, text)) = data.split_first() else { return };
    match kind % 5 {
        0 => drop(same_again::<PolicyInfo>(text)),
        1 => drop(same_again::<PolicyError>(text)),
        2 => drop(same_again::<QuantConfig>(text)),
        3 => {
            if let Some(request) = same_again::<PolicyRequest>(text)
                && let Ok(measured) = request.measured()
            {
                assert_eq!(measured.len(), request.layers.len());
            }
        }
        _ => {
            if let Some(plan) = same_again::<PolicyPlan>(text)
                && check_plan("fuzz", &request(), &plan).is_ok()
            {
                assert_eq!(plan.layers[0].activation_bits.len(), 2);
                assert!(plan.layers.iter().all(|l| (2..=8).contains(&l.weight_bits)));
            }
        }
    }
});

/// The document, if it is one.
fn same_again<T: DeserializeOwned + Serialize>(text: &[u8]) -> Option<T> {
    let document: T = serde_json::from_slice(text).ok()?;
    let written = serde_json::to_vec(&document).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("can be written"), written);
    Some(document)
}

fn request() -> PolicyRequest {
    let layer = |id: &str, role| LayerSpec {
        id: id.into(),
        block: "b".into(),
        stream: Stream::Image,
        role,
        in_features: 4,
        out_features: 4,
        post_gelu: role == Role::Fc2,
    };
    let timesteps = vec![Timestep { step: 0, sigma: 1.0 }, Timestep { step: 1, sigma: 0.5 }];
    PolicyRequest::new("fuzz", vec![layer("a", Role::Q), layer("f", Role::Fc2)], timesteps)
}
