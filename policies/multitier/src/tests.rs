use serde_json::json;
use taq_policy::{LayerColumns, LayerSpec, PolicyRequest, Role, ScaleSource, Stream, Timestep};

use super::*;

/// One layer and a timestep for each absmax, everything else calm.
fn request(absmax: &[f32]) -> PolicyRequest {
    let steps = absmax.len();
    let layer = LayerSpec {
        id: "mm0.img.attn.q_proj".into(),
        block: "mm0".into(),
        stream: Stream::Image,
        role: Role::Q,
        in_features: 64,
        out_features: 64,
        post_gelu: false,
    };
    let columns = LayerColumns {
        id: layer.id.clone(),
        absmax: absmax.to_vec(),
        min: absmax.iter().map(|v| -v).collect(),
        max: absmax.to_vec(),
        p001: vec![-2.0; steps],
        p01: vec![-1.5; steps],
        p50: vec![1.0; steps],
        p99: vec![2.0; steps],
        p999: vec![2.5; steps],
        outlier_ratio: vec![2.0; steps],
        spike_fraction: vec![0.0; steps],
        batches: vec![1; steps],
        ..LayerColumns::default()
    };
    let timesteps =
        (0..steps).map(|step| Timestep { step, sigma: 1.0 - step as f32 / steps as f32 }).collect();
    PolicyRequest { statistics: vec![columns], ..PolicyRequest::new("toy", vec![layer], timesteps) }
}

/// The same, after GELU; `shifted` is what is left after the shift.
fn after_gelu(absmax: &[f32], shifted: &[f32]) -> PolicyRequest {
    let mut request = request(absmax);
    request.layers[0].post_gelu = true;
    request.statistics[0].shifted_absmax = shifted.to_vec();
    request.statistics[0].shift_magnitude = vec![1.0; shifted.len()];
    request
}

fn with(mut request: PolicyRequest, settings: serde_json::Value) -> PolicyRequest {
    request.settings = settings.as_object().unwrap().clone();
    request
}

fn layer(request: &PolicyRequest) -> LayerPlan {
    assign(request).unwrap().layers.remove(0)
}

fn error(request: &PolicyRequest) -> String {
    assign(request).unwrap_err().to_string()
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
fn the_guard_raises_one_tier_above_a_ratio_of_4() {
    let mut request = request(&[1.0, 1.0, 7.0, 20.0]);
    request.statistics[0].p99 = vec![4.0, 4.001, 4.001, 4.001];
    let plan = layer(&request);
    assert_eq!(plan.activation_bits, [4, 6, 8, 8]);
    assert_eq!(plan.reason.unwrap(), "2 of 4 timesteps one tier up: p99/p50 above 4");
    let plan = layer(&with(request, json!({ "outlier_ratio": 4.5 })));
    assert_eq!((plan.activation_bits, plan.reason), (vec![4, 4, 6, 8], None));
}

#[test]
fn the_guard_leaves_post_gelu_and_dead_layers_alone() {
    let mut request = after_gelu(&[1.0], &[1.0]);
    request.statistics[0].p99 = vec![400.0];
    assert_eq!(layer(&request).activation_bits, [4]);
    request.layers[0].post_gelu = false;
    assert_eq!(layer(&request).activation_bits, [6]);
    request.statistics[0].p50 = vec![0.0];
    assert_eq!(layer(&request).activation_bits, [4]);
}

/// Three timesteps in the three tiers, with a spike in one channel of 64.
fn spiky() -> PolicyRequest {
    let mut request = request(&[5.0, 9.0, 12.0]);
    request.statistics[0].spike_fraction = vec![1.0 / 64.0; 3];
    request.statistics[0].outlier_ratio = vec![5.5; 3];
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
        (|c| c.spike_fraction[0] = 0.0, false),
        (|c| c.spike_fraction[0] = 0.049, true),
        (|c| c.spike_fraction[0] = 0.05, false),
        (|c| c.outlier_ratio[0] = 5.0, false),
        (|c| c.outlier_ratio[0] = 5.001, true),
        // The first timestep decides whether the weights change.
        (|c| c.outlier_ratio[2] = 1.0, true),
    ];
    for (i, (change, smooth)) in cases.into_iter().enumerate() {
        let mut request = spiky();
        change(&mut request.statistics[0]);
        assert_eq!(layer(&request).smoothquant_alpha.is_some(), smooth, "case {i}");
    }
    let mut request = spiky();
    request.statistics[0].outlier_ratio[2] = 1.0;
    assert_eq!(layer(&request).activation_bits, [4, 4, 8], "a timestep without the spike stays where it is");
}

#[test]
fn smoothquant_takes_back_what_the_guard_gave() {
    let mut request = spiky();
    request.statistics[0].p99 = vec![10.0; 3];
    let plan = layer(&request);
    assert_eq!(plan.activation_bits, [4, 6, 6]);
    assert_eq!(
        plan.reason.unwrap(),
        "2 of 3 timesteps one tier up: p99/p50 above 4; SmoothQuant, 3 of 3 timesteps one tier down"
    );
}

#[test]
fn thresholds_are_for_the_clipping_range() {
    let request = with(request(&[12.0]), json!({ "scale_source": "p999" }));
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
    assert_eq!(error(&incomplete), "statistics of mm0.img.attn.q_proj: p99 has 1 entries for 2 timesteps");
    incomplete.statistics[0].id = "b".into();
    assert_eq!(error(&incomplete), "expected the statistics of mm0.img.attn.q_proj, found b");
    incomplete.statistics.clear();
    assert_eq!(error(&incomplete), "statistics of 1 layers are needed, found 0");
}

#[test]
fn sd3_medium_is_planned_the_same_twice() {
    let steps = 50;
    let one = request(&vec![1.0; steps]);
    let mut request = PolicyRequest::new("sd3-medium", Vec::new(), one.timesteps.clone());
    for i in 0..285u16 {
        let (mut layer, mut columns) = (one.layers[0].clone(), one.statistics[0].clone());
        layer.id = format!("mm{}.{i}", i / 12).as_str().into();
        columns.id = layer.id.clone();
        columns.absmax = (0..steps).map(|t| f32::from(i) / 20.0 + t as f32 / 50.0).collect();
        request.layers.push(layer);
        request.statistics.push(columns);
    }
    let plan = assign(&request).unwrap();
    assert_eq!(plan.layers.len(), 285);
    assert!(plan.layers.iter().zip(&request.layers).all(|(p, l)| p.id == l.id));
    assert!(plan.layers.iter().all(|l| l.activation_bits.len() == steps && l.activation_bits.is_sorted()));
    assert_eq!(plan.layers[0].activation_bits, vec![4; steps]);
    assert_eq!(plan.layers[284].activation_bits, vec![8; steps]);
    let bytes = serde_json::to_vec(&plan).unwrap();
    let (answer, fine) = guest::answer(&serde_json::to_vec(&request).unwrap(), assign);
    assert!(fine && answer == bytes, "the JSON boundary changes nothing");
}
