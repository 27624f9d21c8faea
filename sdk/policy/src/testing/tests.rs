use std::cell::Cell;

use super::*;
use crate::LayerPlan;

fn uniform(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
    let steps = request.timesteps.len();
    Ok(PolicyPlan::new(
        request.layers.iter().map(|l| LayerPlan::uniform(l.id.clone(), 4, 8, steps)).collect(),
    ))
}

#[test]
fn layers_are_those_of_sd3() {
    let medium = sd3_layers(24, 1536);
    assert_eq!(medium.len(), 285);
    // 24 blocks of 2 · 12 · 1536², without the last text stream's o (1), fc1 (4) and fc2 (4).
    assert_eq!(medium.iter().map(LayerSpec::parameters).sum::<usize>(), (24 * 24 - 9) * 1536 * 1536);
    let emoji = sd3_layers(6, 192);
    assert_eq!(emoji.len(), 69);
    assert_eq!(emoji[0].id.as_str(), "mm0.img.attn.q_proj");
    let last = emoji.last().unwrap();
    assert_eq!(
        (last.id.as_str(), last.block.as_str(), last.stream),
        ("mm5.txt.attn.v_proj", "mm5", Stream::Text)
    );
    let fc2 = emoji.iter().find(|l| l.role == Role::Fc2).unwrap();
    assert_eq!((fc2.in_features, fc2.out_features, fc2.post_gelu), (768, 192, true));
    assert_eq!(emoji.iter().filter(|l| l.post_gelu).count(), 11);
}

/// What holds of every measurement: quantiles rise, and nothing is beyond the largest magnitude.
#[test]
fn statistics_are_consistent() {
    for request in [request(sd3_layers(2, 64), 3), sd3_request(24, 1536, 50)] {
        let mut spiky = 0;
        for (layer, c) in request.measured().unwrap() {
            for at in 0..request.timesteps.len() {
                let rising =
                    [c.min[at], c.p001[at], c.p01[at], 0.0, c.p50[at], c.p99[at], c.p999[at], c.absmax[at]];
                assert!(rising.is_sorted(), "{}: {rising:?}", layer.id);
                assert_eq!(c.absmax[at], c.max[at].max(-c.min[at]), "{}", layer.id);
                let channels = [c.channel_p50[at], c.channel_p99[at], c.channel_max[at], c.absmax[at]];
                assert!(channels.is_sorted(), "{}: {channels:?}", layer.id);
                assert!((c.outlier_ratio[at] - c.absmax[at] / c.p99[at]).abs() < 1e-6);
                assert_eq!(!c.shifted_absmax.is_empty(), layer.post_gelu);
                spiky += usize::from(c.spike_fraction[at] > 0.0);
            }
        }
        assert!(spiky < request.layers.len() * request.timesteps.len() / 2);
    }
    assert_eq!(sd3_request(3, 64, 4), sd3_request(3, 64, 4));
}

#[test]
fn a_policy_that_keeps_its_contract_is_run() {
    let request = with_settings(sd3_request(2, 64, 3), &serde_json::json!({ "a": 1 }));
    assert_eq!(run(&request, uniform).unwrap().layers.len(), 21);
    let no = |_: &PolicyRequest| Err(PolicyError::new("no"));
    assert_eq!(run(&request, no).unwrap_err().to_string(), "no");
}

#[test]
#[should_panic(expected = "otherwise the second time")]
fn a_policy_with_a_memory_is_caught() {
    let calls = Cell::new(4);
    let assign = |request: &PolicyRequest| {
        calls.set(calls.get() + 1);
        let mut plan = uniform(request)?;
        plan.layers[0].weight_bits = calls.get();
        Ok(plan)
    };
    let _ = run(&sd3_request(1, 64, 1), assign);
}

#[test]
#[should_panic(expected = "otherwise through JSON")]
fn a_request_that_json_cannot_carry_is_caught() {
    let mut request = sd3_request(1, 64, 1);
    request.statistics[0].absmax[0] = f32::NAN;
    let _ = run(&request, uniform);
}

#[test]
#[should_panic(expected = "mm0.img.attn.q_proj: weight_bits is 9, allowed are")]
fn a_plan_that_does_not_answer_is_caught() {
    let assign = |request: &PolicyRequest| {
        let mut plan = uniform(request)?;
        plan.layers[0].weight_bits = 9;
        Ok(plan)
    };
    let _ = run(&sd3_request(1, 64, 1), assign);
}

#[test]
fn a_file_that_is_no_request_is_named() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let message = read_request(path).unwrap_err().to_string();
    assert!(message.contains("Cargo.toml`: expected value"), "{message}");
    assert!(read_request("gone.json").unwrap_err().to_string().starts_with("`gone.json`: "));
}
