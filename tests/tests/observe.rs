//! Statistics of activations: counted and measured like a naive computation over the same activations of the emoji model.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use taq_core::artifacts::{Npz, RunFolder};
use taq_core::registry::Registry;
use taq_core::stats::quantile_f64;
use taq_plugins as _;
use taq_tests::activations::inputs;
use taq_tests::taq::{artifacts, assert_same_artifacts, command, fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

const OBSERVE: [&str; 7] = [
    "observe",
    "--batch-size",
    "2",
    "--observer",
    "avg-minmax,minmax,percentile,mse",
    "--observer-config",
    "{\"percentile\": {\"percentile\": 99}, \"mse\": {\"bits\": 4}}",
];

fn on<'a>(arguments: &[&'a str], run: &'a str) -> Vec<&'a str> {
    [arguments, &["--run", run]].concat()
}

fn calibrated(run: &str, images: &str, steps: &str) {
    succeed(HOST, &["calibrate", "--num-images", images, "--num-steps", steps, "--calib-dir", run]);
}

fn document(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{what}: {found} instead of {expected}");
}

/// The f32 that the document means: JSON has as many digits as tell it apart.
fn single(value: &Value) -> Option<f64> {
    value.as_f64().map(|v| f64::from(v as f32))
}

/// Smallest and largest value of each channel.
fn extremes(values: &[f32], channels: usize) -> Vec<[f64; 2]> {
    let column = |c: usize| values.iter().skip(c).step_by(channels).map(|&v| f64::from(v));
    let of = |c| [column(c).fold(f64::INFINITY, f64::min), column(c).fold(f64::NEG_INFINITY, f64::max)];
    (0..channels).map(of).collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a, v| a.max(v.abs()))
}

/// What one layer's files say at one step.
struct Found<'a> {
    npz: &'a Npz,
    scalars: &'a Value,
    prefix: String,
    channels: usize,
}

impl Found<'_> {
    fn vector(&self, field: &str) -> Vec<f64> {
        let values: Vec<f32> = self.npz.vec(&format!("{}__{field}", self.prefix), &[self.channels]).unwrap();
        values.into_iter().map(f64::from).collect()
    }

    fn scalar(&self, field: &str) -> f64 {
        single(&self.scalars[field]).unwrap_or_else(|| panic!("{} has no {field}", self.prefix))
    }

    #[track_caller]
    fn check(&self, field: &str, expected: f64) {
        near(self.scalar(field), expected, &format!("{} {field}", self.prefix));
    }

    fn histogram(&self) -> (Vec<u64>, Vec<f32>) {
        let name = |field: &str| format!("{}__{field}", self.prefix);
        (
            self.npz.vec(&name("hist_counts"), &[256]).unwrap(),
            self.npz.vec(&name("hist_edges"), &[257]).unwrap(),
        )
    }

    /// Ranges of channels, averaged over batches and over all, and the shift.
    fn check_channels(&self, batches: &[&[f32]], all: &[[f64; 2]], post_gelu: bool) {
        let each: Vec<Vec<[f64; 2]>> = batches.iter().map(|b| extremes(b, self.channels)).collect();
        let [low, high] = ["avg_min", "avg_max"].map(|field| self.vector(field));
        let [least, most] = ["minmax_min", "minmax_max"].map(|field| self.vector(field));
        for c in 0..self.channels {
            let mean = |end: usize| each.iter().map(|b| b[c][end]).sum::<f64>() / each.len() as f64;
            near(low[c], mean(0), &format!("{} avg_min {c}", self.prefix));
            near(high[c], mean(1), &format!("{} avg_max {c}", self.prefix));
            assert_eq!([least[c], most[c]], all[c]);
        }
        assert_eq!(self.npz.contains(&format!("{}__shift", self.prefix)), post_gelu);
        if post_gelu {
            let shift = self.vector("shift");
            for (c, found) in shift.iter().enumerate() {
                let middle = |b: &Vec<[f64; 2]>| f64::midpoint(b[c][0], b[c][1]);
                let expected = each[1..].iter().fold(middle(&each[0]), |s, b| 0.95 * s + 0.05 * middle(b));
                // The middle of two ends of nearly one magnitude is as precise as these.
                let off = (found - expected).abs();
                assert!(off <= 1e-6 * all[c][0].abs().max(all[c][1].abs()), "{} shift {c}", self.prefix);
            }
            let left = |c: usize| (low[c] - shift[c]).abs().max((high[c] - shift[c]).abs());
            self.check("shift_absmax", largest(shift.iter().copied()));
            self.check("shifted_absmax", largest((0..self.channels).map(left)));
        }
        let absmax: Vec<f64> = (0..self.channels).map(|c| low[c].abs().max(high[c].abs())).collect();
        for (field, q) in [("channel_p50", 0.5), ("channel_p99", 0.99), ("channel_max", 1.0)] {
            self.check(field, quantile_f64(&absmax, q).unwrap());
        }
    }

    /// Counts to the last value, edges, and quantiles as they follow from the counts.
    fn check_histogram(&self, batches: &[&[f32]]) {
        let (counts, edges) = self.histogram();
        let (low, high) =
            batches[0].iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        assert_eq!((edges[0], edges[256]), (low, high), "{}", self.prefix);
        let width = (f64::from(high) - f64::from(low)) / 256.0;
        for (i, edge) in edges.iter().enumerate() {
            let even = f64::from(low) + width * i as f64;
            assert!((f64::from(*edge) - even).abs() < 1e-3 * width, "{} edge {i}: {edge}", self.prefix);
        }
        let mut expected = vec![0_u64; 256];
        for v in batches.iter().copied().flatten() {
            let above = edges[1..256].iter().filter(|edge| *edge <= v).count();
            expected[above] += 1;
        }
        assert_eq!(counts, expected, "{}", self.prefix);
        let total: usize = batches.iter().map(|b| b.len()).sum();
        assert_eq!(counts.iter().sum::<u64>(), total as u64);

        let mut far: Vec<(f64, u64)> = edges
            .windows(2)
            .zip(&counts)
            .map(|(e, &n)| (f64::from(e[0]).abs().max(f64::from(e[1]).abs()), n))
            .collect();
        far.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (field, q) in [("hist_p999", 0.999), ("hist_p99", 0.99), ("hist_p50", 0.5)] {
            let mut below = 0;
            let reached = far.iter().find(|(_, n)| {
                below += n;
                *n > 0 && below as f64 >= q * total as f64
            });
            self.check(field, reached.unwrap().0);
        }
        for (field, q) in [("hist_p01", 0.01), ("hist_p001", 0.001)] {
            let (mut below, wanted) = (0.0, q * total as f64);
            let bin = (0..256).find(|&i| {
                below += counts[i] as f64;
                below >= wanted
            });
            let bin = bin.unwrap();
            let share = 1.0 - (below - wanted) / counts[bin] as f64;
            let ends = [bin, bin + 1].map(|i| f64::from(edges[i]));
            let expected = ends[0] + (ends[1] - ends[0]) * share;
            let off = (self.scalar(field) - expected).abs();
            assert!(off <= 1e-6 * ends[0].abs().max(ends[1].abs()), "{} {field}", self.prefix);
        }
    }

    /// Ranges of the tensor by the four observers.
    fn check_tensor(&self, values: &[f32]) {
        let mut sorted: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
        for [field, range] in [["tensor_min", "range_min"], ["tensor_max", "range_max"]] {
            assert_eq!(self.scalars[field], self.scalars[range]);
        }
        assert_eq!((self.scalar("tensor_min"), self.scalar("tensor_max")), (low, high));
        assert_eq!(self.scalar("tensor_absmax"), low.abs().max(high));
        let beside = |name: &str| [0, 1].map(|end| single(&self.scalars["beside"][name][end]).unwrap());
        assert_eq!(beside("minmax"), [low, high]);

        let at = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
        for (found, expected) in beside("percentile").into_iter().zip([at(0.01), at(0.99)]) {
            let off = (found - expected).abs();
            assert!(off <= expected.abs() / 60.0, "{} percentile: {found}, {expected}", self.prefix);
        }
        let error = |clip: f64| {
            let scale = clip / 7.0;
            let off = |v: &f64| (v - scale * (v / scale).round().clamp(-8.0, 7.0)).powi(2);
            sorted.iter().step_by(7).map(off).sum::<f64>()
        };
        let [_, high_clip] = beside("mse");
        let clip = high_clip.max(-beside("mse")[0]);
        let absmax = low.abs().max(high);
        let least = (1..=100).map(|i| error(absmax * f64::from(i) / 100.0)).fold(f64::INFINITY, f64::min);
        assert!(error(clip) <= 1.03 * least, "{} mse: {clip} of {absmax}", self.prefix);
        for observer in ["percentile", "mse"] {
            let [low, high] = beside(observer);
            let minmax = [self.vector("minmax_min"), self.vector("minmax_max")];
            for (field, ends) in ["min", "max"].into_iter().zip(minmax) {
                let clipped: Vec<f64> = ends.into_iter().map(|v| v.max(low).min(high)).collect();
                assert_eq!(self.vector(&format!("{observer}_{field}")), clipped);
            }
        }
    }
}

#[test]
fn statistics_are_those_of_a_naive_computation() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let run = root.to_str().unwrap();
    calibrated(run, "5", "3");
    // Two batches of two images and one of one.
    succeed(HOST, &on(&[&OBSERVE[..], &["--stride", "2"]].concat(), run));
    let paths = RunFolder::open(&root).unwrap();
    let index = document(&paths.layer_statistics());
    assert_eq!(index["format"], "per_timestep_npz_v4");
    assert_eq!(index["step_keys"], json!([0, 2]));
    assert_eq!(index["bucket_definitions"]["mid"].as_array().unwrap().len(), 2);
    assert_eq!(index["metadata"]["observer"]["name"], "avg-minmax");
    assert_eq!(index["metadata"]["beside"][1], json!({"name": "percentile", "settings": {"percentile": 99}}));
    assert_eq!(index["metadata"]["total_processed"], 10);

    let model = Registry::linked().unwrap().model("sd3", &json!({})).unwrap();
    for step in [0, 2] {
        let npz = Npz::open(&paths.step_stats(step)).unwrap();
        let scalars = document(&paths.step_index(step));
        assert_eq!(scalars.as_object().unwrap().len(), 69);
        let passes = [vec![0, 1], vec![2, 3], vec![4]].map(|images| inputs(&*model, &root, &images, step));
        for (place, (layer, _)) in passes[0].iter().enumerate() {
            // A few of each kind: all would take long.
            if !(layer.id.as_str().starts_with("mm1.img") || layer.id.as_str().starts_with("mm4.txt.mlp")) {
                continue;
            }
            let batches: Vec<&[f32]> = passes.iter().map(|pass| pass[place].1.as_slice()).collect();
            let values = batches.concat();
            let found = Found {
                npz: &npz,
                scalars: &scalars[layer.id.as_str()],
                prefix: layer.id.array_prefix(),
                channels: layer.in_features,
            };
            assert_eq!(found.scalars["n_batches"], 3);
            found.check_channels(&batches, &extremes(&values, layer.in_features), layer.post_gelu);
            found.check_histogram(&batches);
            found.check_tensor(&values);
        }
    }
    assert!(!paths.step_index(1).exists());

    // A second time nothing is computed; a step that is lost is, to the same bytes.
    assert!(succeed(HOST, &on(&[&OBSERVE[..], &["--stride", "2"]].concat(), run)).contains("reused"));
    let bytes = std::fs::read(paths.step_stats(2)).unwrap();
    std::fs::remove_file(paths.step_stats(2)).unwrap();
    succeed(HOST, &on(&[&OBSERVE[..], &["--stride", "2"]].concat(), run));
    assert!(std::fs::read(paths.step_stats(2)).unwrap() == bytes, "the bytes differ");
}

#[test]
fn the_first_observer_makes_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let run = root.to_str().unwrap();
    calibrated(run, "2", "2");
    let paths = RunFolder::open(&root).unwrap();
    let mut absmax = BTreeMap::new();
    for observer in ["minmax", "percentile,minmax"] {
        succeed(HOST, &on(&["observe", "--observer", observer, "--force"], run));
        succeed(HOST, &on(&["decide", "--force"], run));
        let grid = document(&paths.quant_config())["per_timestep"]["1"]["mm2.img.attn.q_proj"].take();
        let scalars = document(&paths.step_index(1))["mm2.img.attn.q_proj"].take();
        let end = |field: &str| scalars[field].as_f64().unwrap().abs();
        assert_eq!(grid["absmax"].as_f64().unwrap(), end("range_min").max(end("range_max")));
        absmax.insert(observer, grid["absmax"].as_f64().unwrap());
    }
    assert!(absmax["percentile,minmax"] < 0.95 * absmax["minmax"], "{absmax:?}");

    // Layers: those that are meant, and a plan that lacks some is refused.
    succeed(HOST, &on(&["observe", "--layers", "mm0.img", "mm_03_txt", "--force"], run));
    let found = document(&paths.step_index(0));
    let blocks = |start: &str| found.as_object().unwrap().keys().filter(|k| k.starts_with(start)).count();
    assert_eq!((blocks("mm0.img"), blocks("mm3.txt"), blocks("")), (6, 6, 12));
    let refused = |arguments: &[&str], expected: &[&str]| {
        let (code, said) = fail(HOST, &on(arguments, run));
        assert_eq!(code, 2, "{said}");
        for part in expected {
            assert!(folded(&said).contains(part), "{arguments:?} should say “{part}”: {said}");
        }
    };
    refused(&["decide", "--force"], &["mm0.txt.attn.q_proj was not observed at step 0", "taq observe"]);
    refused(&["observe", "--layers", "mm9"], &["there is no layer `mm9`"]);
    refused(&["observe", "--observer", "minmax,minmax"], &["`minmax` is chosen twice"]);
    refused(&["observe", "--observer", "minmx"], &["no observer named `minmx`", "did you mean `minmax`?"]);
    refused(
        &["observe", "--observer", "minmax,mse", "--observer-config", "{\"bits\": 4}"],
        &["`bits` is no chosen observer"],
    );
    refused(
        &["observe", "--observer", "percentile", "--observer-config", "{\"percentile\": 30}"],
        &["percentile must be over 50"],
    );
    refused(&["observe", "--shift-momentum", "1.5"], &["shift_momentum must be between 0 and 1"]);
    refused(&["observe", "--num-images", "3"], &["num_images is 3"]);
}

/// Starts a command, kills it once a file is there, and says whether it was still running.
fn kill_at(arguments: &[&str], sign: &Path) -> bool {
    let mut child = command(HOST, arguments).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(300);
    while !sign.exists() {
        assert!(std::time::Instant::now() < deadline, "{} never came", sign.display());
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn a_killed_track_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    let signs = [
        (&OBSERVE[..], "activations/timestep_stats/step_0.npz"),
        (&OBSERVE[..], "activations/timestep_stats/step_2_index.json"),
        (&["profile"], "activations/post_gelu/step_1.npz"),
    ];
    for root in [&whole, &killed] {
        let run = root.to_str().unwrap();
        calibrated(run, "4", "6");
        for (arguments, sign) in signs {
            if root == &killed {
                assert!(kill_at(&on(arguments, run), &root.join(sign)), "it was over before {sign} was seen");
            }
        }
        succeed(HOST, &on(&OBSERVE, run));
        succeed(HOST, &on(&["profile"], run));
        succeed(HOST, &on(&["decide", "--policy", "multitier"], run));
    }
    assert_same_artifacts(&whole, &killed);
    assert!(artifacts(&whole).iter().any(|f| f.ends_with("layer_temporal_analysis.json")));
}
