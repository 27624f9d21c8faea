use serde_json::json;
use taq_policy::testing::{self, with_settings};
use taq_policy::{LayerColumns, PolicyRequest, Role, ScaleSource};

use super::*;

/// One layer and a timestep for each absmax, everything else calm.
fn request(absmax: &[f32]) -> PolicyRequest {
    of_one(Role::Q, absmax)
}

fn of_one(role: Role, absmax: &[f32]) -> PolicyRequest {
    let mut request = testing::request(vec![testing::layer("mm0.img.l", role, 64, 64)], absmax.len());
    request.statistics[0].absmax = absmax.to_vec();
    request
}

/// The same, after GELU; `shifted` is what is left after the shift.
fn after_gelu(absmax: &[f32], shifted: &[f32]) -> PolicyRequest {
    let mut request = of_one(Role::Fc2, absmax);
    request.statistics[0].shifted_absmax = shifted.to_vec();
    request.statistics[0].shift_magnitude = vec![1.0; shifted.len()];
    request
}

fn with(request: PolicyRequest, settings: serde_json::Value) -> PolicyRequest {
    with_settings(request, &settings)
}

fn layer(request: &PolicyRequest) -> LayerPlan {
    testing::run(request, assign).unwrap().layers.remove(0)
}

fn error(request: &PolicyRequest) -> String {
    testing::run(request, assign).unwrap_err().to_string()
}

#[test]
fn below_6_is_a4_below_10_is_a6_the_rest_a8() {
    let plan = layer(&request(&[0.0, 5.999, 6.0, 9.999, 10.0, 1e9]));
    assert_eq!(plan.activation_bits, [4, 4, 6, 6, 8, 8]);
    assert_eq!((plan.weight_bits, plan.shift, plan.reason), (4, false, None));
    assert_eq!((plan.scale_source, plan.smoothquant_alpha), (ScaleSource::Absmax, None));
}

#[test]
fn shifted_layers_are_judged_after_the_shift_by_5_and_8() {
    let plan = layer(&after_gelu(&[100.0; 5], &[4.999, 5.0, 7.999, 8.0, 50.0]));
    assert_eq!(plan.activation_bits, [4, 6, 6, 8, 8]);
    assert!(plan.shift);
}

#[test]
fn post_gelu_layers_without_a_shift_are_judged_as_they_are() {
    for request in [
        with(after_gelu(&[5.5, 9.0, 12.0], &[1.0; 3]), json!({ "shift_post_gelu": false })),
        after_gelu(&[5.5, 9.0, 12.0], &[]),
    ] {
        let plan = layer(&request);
        assert_eq!((plan.activation_bits, plan.shift), (vec![4, 6, 8], false));
    }
}

#[test]
fn the_guard_raises_one_tier_above_a_ratio_of_4_over_channels() {
    let mut request = request(&[1.0, 1.0, 7.0, 20.0]);
    let columns = &mut request.statistics[0];
    (columns.channel_p50, columns.channel_p99) = (vec![1.0; 4], vec![4.0, 4.001, 4.001, 4.001]);
    // How the values themselves are distributed is another matter.
    (columns.p50, columns.p99) = (vec![0.01; 4], vec![1.0; 4]);
    let plan = layer(&request);
    assert_eq!(plan.activation_bits, [4, 6, 8, 8]);
    assert_eq!(plan.reason.unwrap(), "2 of 4 timesteps one tier up: p99/p50 over channels above 4");
    let plan = layer(&with(request, json!({ "outlier_ratio": 4.5 })));
    assert_eq!((plan.activation_bits, plan.reason), (vec![4, 4, 6, 8], None));
}

#[test]
fn the_guard_leaves_post_gelu_and_dead_layers_alone() {
    let mut request = after_gelu(&[1.0], &[1.0]);
    request.statistics[0].channel_p99 = vec![400.0];
    assert_eq!(layer(&request).activation_bits, [4]);
    request.layers[0].post_gelu = false;
    assert_eq!(layer(&request).activation_bits, [6]);
    request.statistics[0].channel_p50 = vec![0.0];
    assert_eq!(layer(&request).activation_bits, [4]);
}

/// Three timesteps in the three tiers, with a spike in one channel of 64.
fn spiky() -> PolicyRequest {
    let mut request = request(&[5.0, 9.0, 12.0]);
    let columns = &mut request.statistics[0];
    columns.spike_fraction = vec![1.0 / 64.0; 3];
    (columns.channel_p50, columns.channel_p99) = (vec![0.5; 3], vec![0.75; 3]);
    columns.channel_max = vec![4.5; 3];
    with(request, json!({ "smoothquant": true }))
}

#[test]
fn smoothquant_is_off_unless_asked_for() {
    let plan = layer(&with(spiky(), json!({})));
    assert_eq!((plan.activation_bits, plan.smoothquant_alpha), (vec![4, 6, 8], None));
}

#[test]
fn smoothquant_takes_candidates_one_tier_down() {
    let plan = layer(&spiky());
    assert_eq!((plan.activation_bits, plan.smoothquant_alpha), (vec![4, 4, 6], Some(0.5)));
    assert_eq!(plan.reason.unwrap(), "SmoothQuant, 2 of 3 timesteps one tier down");
}

#[test]
fn smoothquant_needs_few_channels_and_a_far_spike_at_the_first_timestep() {
    type Change = fn(&mut LayerColumns);
    let cases: [(Change, bool); 6] = [
        (|c| c.spike_fraction[0] = 0.049, true),
        (|c| c.spike_fraction[0] = 0.05, false),
        (|c| c.channel_max[0] = 3.75, false),
        (|c| c.channel_max[0] = 3.751, true),
        (|c| c.channel_p99[0] = 0.0, false),
        // The first timestep decides whether the weights change.
        (|c| c.channel_max[2] = 1.0, true),
    ];
    for (i, (change, smooth)) in cases.into_iter().enumerate() {
        let mut request = spiky();
        change(&mut request.statistics[0]);
        assert_eq!(layer(&request).smoothquant_alpha.is_some(), smooth, "case {i}");
    }
    let mut request = spiky();
    request.statistics[0].channel_max[2] = 1.0;
    assert_eq!(layer(&request).activation_bits, [4, 4, 8], "a timestep without the spike stays where it is");
}

#[test]
fn smoothquant_takes_back_what_the_guard_gave() {
    let mut request = spiky();
    request.statistics[0].channel_p50 = vec![0.125; 3];
    let plan = layer(&request);
    assert_eq!(plan.activation_bits, [4, 6, 6]);
    assert_eq!(
        plan.reason.unwrap(),
        "2 of 3 timesteps one tier up: p99/p50 over channels above 4; SmoothQuant, 3 of 3 timesteps one tier down"
    );
}

#[test]
fn thresholds_are_for_the_clipping_range() {
    let request = with(request(&[12.0]), json!({ "scale_source": "p999" }));
    assert!(request.statistics[0].p999[0] < 6.0);
    let plan = layer(&request);
    assert_eq!((plan.activation_bits, plan.scale_source), (vec![4], ScaleSource::P999));
}

#[test]
fn bits_that_are_not_allowed_become_the_next_wider() {
    let mut request = request(&[1.0, 7.0, 20.0]);
    request.activation_bits = vec![8, 5, 7];
    request.weight_bits = vec![2, 3];
    let plan = layer(&request);
    assert_eq!((plan.weight_bits, plan.activation_bits), (3, vec![5, 7, 8]));
    assert_eq!(plan.reason.unwrap(), "W4 is not allowed: W3; A4 is not allowed: A5; A6 is not allowed: A7");
    request.weight_bits.clear();
    assert_eq!(error(&request), "the request allows no bits for W4");
}

#[test]
fn settings_are_checked() {
    let cases = [
        (json!({ "bits": 4 }), "unknown field `bits`"),
        (json!({ "bits_w": 9 }), "bits_w must be 2 to 8, not 9"),
        (json!({ "tiers": [6, 4, 8] }), "tiers must be 2 to 8 and rising, not [6, 4, 8]"),
        (json!({ "tiers": [1, 4, 8] }), "tiers must be 2 to 8 and rising, not [1, 4, 8]"),
        (json!({ "a4_threshold": -1 }), "a4_threshold must be a number from 0, not -1"),
        (json!({ "a4_threshold": 11 }), "a4_threshold must not be above a6_threshold: 11 and 10"),
        (
            json!({ "shifted_a6_threshold": 2 }),
            "shifted_a4_threshold must not be above shifted_a6_threshold: 5 and 2",
        ),
        (json!({ "smoothquant_alpha": 1.5 }), "smoothquant_alpha must be 0 to 1, not 1.5"),
    ];
    for (settings, message) in cases {
        let found = error(&with(request(&[1.0]), settings));
        let reason = found.strip_prefix("settings: ").unwrap_or_else(|| panic!("{found}"));
        assert!(reason.starts_with(message), "{found}");
    }
}

#[test]
fn incomplete_statistics_are_refused() {
    let mut incomplete = request(&[1.0, 2.0]);
    incomplete.statistics[0].p99.pop();
    assert_eq!(error(&incomplete), "statistics of mm0.img.l: p99 has 1 entries for 2 timesteps");
    incomplete.statistics[0].id = "b".into();
    assert_eq!(error(&incomplete), "expected the statistics of mm0.img.l, found b");
    incomplete.statistics.clear();
    assert_eq!(error(&incomplete), "statistics of 1 layers are needed, found 0");
}

#[test]
fn sd3_medium_is_planned_in_all_tiers() {
    let request = testing::sd3_request(24, 1536, 50);
    let plan = testing::run(&request, assign).unwrap();
    let mut counts = [0; 9];
    for bits in plan.layers.iter().flat_map(|l| &l.activation_bits) {
        counts[usize::from(*bits)] += 1;
    }
    assert_eq!(counts[4] + counts[6] + counts[8], 285 * 50);
    assert!([4, 6, 8].iter().all(|&bits| counts[bits] > 500), "{counts:?}");
}
