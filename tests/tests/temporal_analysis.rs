//! `layer_temporal_analysis.json` against a naive computation over the statistics and the plan that it is made from.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use taq_core::artifacts::{Npz, RunFolder};
use taq_tests::taq::succeed;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn document(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn near(found: &Value, expected: f64, what: &str) {
    let found = found.as_f64().unwrap();
    assert!(
        (found - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
        "{what}: {found} instead of {expected}"
    );
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

#[test]
fn it_is_what_the_statistics_say() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let run = root.to_str().unwrap();
    succeed(HOST, &["calibrate", "--num-images", "2", "--num-steps", "5", "--calib-dir", run]);
    succeed(HOST, &["observe", "--run", run]);
    // Thresholds between the emoji model's magnitudes, so that all widths occur.
    let tiers = "{\"a4_threshold\": 3, \"a6_threshold\": 6, \"shifted_a4_threshold\": 3, \"shifted_a6_threshold\": 5}";
    succeed(HOST, &["decide", "--run", run, "--policy", "multitier", "--policy-config", tiers]);
    let paths = RunFolder::open(&root).unwrap();
    let found = document(&paths.temporal_analysis());
    let plan = document(&paths.quant_config());
    let scalars: Vec<Value> = (0..5).map(|step| document(&paths.step_index(step))).collect();
    let arrays: Vec<Npz> = (0..5).map(|step| Npz::open(&paths.step_stats(step)).unwrap()).collect();
    assert_eq!(found["format"], "layer_temporal_analysis_v5");
    assert_eq!((&found["model"], &found["sigma_map"]), (&plan["model"], &plan["sigma_map"]));
    let layers: Vec<&String> = scalars[0].as_object().unwrap().keys().collect();
    assert_eq!(found["layer_stats"].as_object().unwrap().len(), layers.len());

    let mut always = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
    let (mut switchers, mut variable, mut spiky, mut with_outliers) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for layer in layers {
        let prefix = layer.replace('.', "_");
        let scalar = |step: usize, field: &str| scalars[step][layer][field].as_f64().unwrap();
        let absmax: Vec<f64> = (0..5).map(|step| scalar(step, "tensor_absmax")).collect();
        let stats = &found["layer_stats"][layer];
        let (least, most) = absmax.iter().fold((f64::INFINITY, 0.0f64), |(a, b), &v| (a.min(v), b.max(v)));
        near(&stats["mean_absmax"], absmax.iter().sum::<f64>() / 5.0, layer);
        near(&stats["min_absmax"], least, layer);
        near(&stats["max_absmax"], most, layer);
        near(&stats["variability_ratio"], most / least, layer);
        if most / least > 2.0 {
            variable.insert(layer.clone());
        }
        let bits: Vec<u64> =
            (0..5).map(|k| plan["per_timestep"][k.to_string()][layer]["bits"].as_u64().unwrap()).collect();
        for (place, width) in [4, 6, 8].into_iter().enumerate() {
            let share = bits.iter().filter(|&&b| b == width).count() as f64 / 5.0;
            near(&stats[format!("a{width}_fraction")], share, layer);
            if share == 1.0 {
                always[place].insert(layer.clone());
            }
        }
        if bits.iter().any(|b| *b != bits[0]) {
            switchers.insert(layer.clone());
        }

        let vector = |step: usize, field: &str| -> Vec<f64> {
            let values = arrays[step].read::<f32>(&format!("{prefix}__{field}")).unwrap().data;
            values.into_iter().map(f64::from).collect()
        };
        if layer.ends_with(".mlp.fc2") {
            let (mut benefit, mut skew) = (0.0, 0.0);
            for (step, npz) in arrays.iter().enumerate() {
                let (low, high, shift) =
                    (vector(step, "avg_min"), vector(step, "avg_max"), vector(step, "shift"));
                let reach = |shift: &dyn Fn(usize) -> f64| {
                    (0..low.len())
                        .fold(0.0f64, |a, c| a.max((low[c] - shift(c)).abs()).max((high[c] - shift(c)).abs()))
                };
                benefit += (1.0 - reach(&|c| shift[c]) / reach(&|_| 0.0)) / 5.0;
                let counts = npz.read::<u64>(&format!("{prefix}__hist_counts")).unwrap().data;
                let edges = vector(step, "hist_edges");
                // Every value at the middle of its bin.
                let total: u64 = counts.iter().sum();
                let moment = |about: f64, power: i32| {
                    let bins = counts.iter().zip(edges.windows(2));
                    bins.map(|(&n, e)| n as f64 * (f64::midpoint(e[0], e[1]) - about).powi(power))
                        .sum::<f64>()
                        / total as f64
                };
                let mean = moment(0.0, 1);
                skew += moment(mean, 3) / moment(mean, 2).powf(1.5) / 5.0;
            }
            let effect = &found["shift_analysis"][layer];
            near(&effect["mean_shift_benefit"], benefit, layer);
            near(&effect["mean_skewness"], skew, layer);
            assert_eq!(effect["effective"], benefit > 0.1);
        } else {
            assert!(found["shift_analysis"].get(layer).is_none());
            let ratio = |k: usize| scalar(k, "channel_max") / scalar(k, "channel_p99");
            let at: Vec<usize> =
                (0..5).filter(|&k| scalar(k, "spike_fraction") < 0.05 && ratio(k) > 5.0).collect();
            if !at.is_empty() {
                spiky.insert((layer.clone(), at));
            }
        }

        let (low, high) = (vector(2, "avg_min"), vector(2, "avg_max"));
        let ranges: Vec<f64> = low.iter().zip(&high).map(|(l, h)| h - l).collect();
        let limit = 2.5 * median(&ranges);
        let out: Vec<usize> = (0..ranges.len()).filter(|&c| ranges[c] > limit).collect();
        if !out.is_empty() {
            with_outliers.insert(layer.clone());
            let outliers = &found["outlier_config"][layer];
            assert_eq!(outliers["outlier_indices"], serde_json::to_value(&out).unwrap(), "{layer}");
            let absmax = |wanted: bool| {
                let of = (0..ranges.len()).filter(|c| out.contains(c) == wanted);
                of.fold(0.0f64, |a, c| a.max(low[c].abs()).max(high[c].abs()))
            };
            near(&outliers["absmax_normal"], absmax(false), layer);
            near(&outliers["absmax_outlier"], absmax(true), layer);
            let multiplier = (absmax(true) / absmax(false)).round().max(1.0) as u64;
            for c in 0..ranges.len() {
                let expected = if out.contains(&c) { multiplier } else { 1 };
                assert_eq!(outliers["multiplier_vector"][c], expected, "{layer} {c}");
            }
        }
    }

    let names = |list: &Value, field: Option<&str>| -> Vec<String> {
        let name = |v: &Value| field.map_or(v, |f| &v[f]).as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(name).collect()
    };
    let set = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
    for (field, expected) in ["always_a4", "always_a6", "always_a8"].into_iter().zip(always) {
        assert!(!expected.is_empty(), "nothing is {field}: the test says little");
        assert_eq!(set(names(&found[field], None)), expected);
    }
    assert!(!switchers.is_empty() && !variable.is_empty() && !with_outliers.is_empty());
    assert_eq!(set(names(&found["switchers"], Some("layer"))), switchers);
    assert_eq!(set(names(&found["high_variability"], Some("layer"))), variable);
    let ratios: Vec<f64> =
        found["high_variability"].as_array().unwrap().iter().map(|v| v["ratio"].as_f64().unwrap()).collect();
    assert!(ratios.is_sorted_by(|a, b| a >= b));
    assert_eq!(set(found["outlier_config"].as_object().unwrap().keys().cloned().collect()), with_outliers);
    let candidates = found["smoothquant_candidates"].as_array().unwrap().iter().map(|c| {
        let steps = c["steps"].as_array().unwrap().iter().map(|s| s.as_u64().unwrap() as usize).collect();
        (c["layer"].as_str().unwrap().to_owned(), steps)
    });
    assert_eq!(candidates.collect::<BTreeSet<(String, Vec<usize>)>>(), spiky);
}
