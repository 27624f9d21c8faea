use serde_json::json;
use taq_policy::testing::{self, with_settings};
use taq_policy::{PolicyPlan, PolicyRequest, ScaleSource, Sensitivity};

use super::*;

fn plan(settings: serde_json::Value) -> PolicyPlan {
    testing::run(&with_settings(testing::sd3_request(4, 64, 20), &settings), assign).unwrap()
}

fn average(plan: &PolicyPlan) -> f64 {
    let bits: Vec<f64> = plan.layers.iter().flat_map(|l| &l.activation_bits).map(|&b| f64::from(b)).collect();
    bits.iter().sum::<f64>() / bits.len() as f64
}

fn runs(layer: &LayerPlan) -> usize {
    1 + layer.activation_bits.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[test]
fn the_average_is_kept_and_nearly_spent() {
    for target in [4.0, 4.5, 5.3, 6.0, 6.7, 7.9, 8.0] {
        for allowed in [1, 2, 4, 20] {
            let plan = plan(json!({ "average_activation_bits": target, "runs": allowed }));
            let found = average(&plan);
            // One layer's step from one width to the next is what may be left over.
            let step = 1.0 / plan.layers.len() as f64;
            assert!(found <= target && found > target - step - 1e-9, "{found} of {target} in {allowed} runs");
            assert!(plan.layers.iter().all(|layer| runs(layer) <= allowed && layer.weight_bits == 8));
        }
    }
}

#[test]
fn wide_reach_and_steep_falls_get_the_bits() {
    let mut request = testing::sd3_request(2, 64, 8);
    for columns in &mut request.statistics {
        (columns.absmax, columns.p99, columns.p999) = (vec![4.0; 8], vec![2.0; 8], vec![3.0; 8]);
        columns.shifted_absmax.clear();
    }
    for (timestep, sigma) in request.timesteps.iter_mut().zip([1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.5, 0.2]) {
        timestep.sigma = sigma;
    }
    request.statistics[1].absmax = vec![40.0; 8];
    let plan =
        testing::run(&with_settings(request, &json!({ "average_activation_bits": 5, "runs": 3 })), assign)
            .unwrap();
    let sum = |at: usize| plan.layers[at].activation_bits.iter().map(|&b| u32::from(b)).sum::<u32>();
    assert!(sum(1) > sum(0) + 8, "{plan:?}");
    let bits = &plan.layers[0].activation_bits;
    assert!(bits[5] > bits[0], "σ falls by 0.45 there and by 0.01 at the start: {bits:?}");
}

#[test]
fn layers_that_matter_more_get_more() {
    let mut request = with_settings(testing::sd3_request(2, 64, 4), &json!({ "average_activation_bits": 6 }));
    request.sensitivities = request
        .layers
        .iter()
        .enumerate()
        .flat_map(|(i, l)| {
            let error = |bits: u8| if i == 3 { 100.0 } else { 1.0 } * 0.25_f32.powi(bits.into());
            [4, 8].map(|bits| Sensitivity { id: l.id.clone(), bits, weight: false, error: error(bits) })
        })
        .collect();
    let plan = testing::run(&request, assign).unwrap();
    assert!(plan.layers[3].activation_bits.iter().all(|&b| b == 8), "{plan:?}");
    request.sensitivities.retain(|s| s.id != request.layers[5].id);
    let message = assign(&request).unwrap_err().to_string();
    assert_eq!(message, format!("sensitivities: the input of {} was not measured", request.layers[5].id));
    request.settings.insert("use_sensitivities".into(), json!(false));
    assert!(assign(&request).is_ok());
}

#[test]
fn outliers_are_clipped_only_if_that_is_asked_for() {
    let mut request = testing::sd3_request(2, 64, 4);
    for columns in &mut request.statistics {
        (columns.absmax, columns.p99, columns.p999) = (vec![40.0; 4], vec![1.0; 4], vec![1.5; 4]);
    }
    let sources = |settings: serde_json::Value| -> Vec<ScaleSource> {
        let plan = testing::run(&with_settings(request.clone(), &settings), assign).unwrap();
        plan.layers.iter().filter(|l| !l.shift).map(|l| l.scale_source).collect()
    };
    assert!(sources(json!({ "average_activation_bits": 4 })).iter().all(|s| *s == ScaleSource::Absmax));
    assert!(
        sources(json!({ "average_activation_bits": 4, "clip": true }))
            .iter()
            .all(|s| *s == ScaleSource::P999)
    );
}

#[test]
fn settings_are_checked() {
    for (settings, message) in [
        (json!({ "average_bits": 4 }), "settings: unknown field `average_bits`"),
        (json!({ "runs": 0 }), "settings: runs must be 1 to 1000, not 0"),
        (json!({ "weight_bits": 9 }), "settings: weight_bits must be 2 to 8, not 9"),
        (json!({ "average_activation_bits": 3 }), "settings: average_activation_bits must be at least"),
        (json!({ "weighting": "steep" }), "settings: unknown variant `steep`"),
    ] {
        let request = with_settings(PolicyRequest::new("settings", vec![], vec![]), &settings);
        let found = assign(&request).unwrap_err().to_string();
        assert!(found.starts_with(message), "{found}");
    }
    let none = PolicyRequest::new("settings", vec![], vec![]);
    assert!(assign(&none).unwrap().layers.is_empty());
}

#[test]
fn settings_schema_is_that_of_the_type() {
    let schema: serde_json::Value = serde_json::from_str(include_str!("../settings.schema.json")).unwrap();
    let defaults = serde_json::to_value(Settings::default()).unwrap();
    let described = schema["properties"].as_object().unwrap();
    assert_eq!(
        described.keys().collect::<Vec<_>>(),
        defaults.as_object().unwrap().keys().collect::<Vec<_>>()
    );
    for (name, default) in defaults.as_object().unwrap() {
        assert_eq!(&described[name]["default"], default, "{name}");
    }
}
