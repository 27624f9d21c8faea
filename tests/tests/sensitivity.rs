//! Sensitivities: the numbers are those of a plain computation, a policy gets them, and what is wrong is said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use mlx_rs::Array;
use serde_json::{Value, json};
use taq_core::artifacts::{Npz, RunFolder};
use taq_core::quant::{Clipping, Grid, nearest};
use taq_core::registry::Registry;
use taq_core::{Conditioning, LinearCall, Model, Result, Tap};
use taq_plugins as _;
use taq_tests::taq::{command, fail, folded, succeed};
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");
const MEASURE: &str = "sensitivity --num-images 2 --stride 2 --bits-w 3,8 --bits-a 4";
const DOCUMENT: &str = "activations/sensitivities.json";

/// A small run, observed and measured, and what `sensitivity` printed.
static RUN: LazyLock<(TempDir, String)> = LazyLock::new(|| {
    let folder = observed();
    let said = taq(&folder.path().join("run"), MEASURE);
    (folder, said)
});

fn observed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    taq(&run, "calibrate --num-images 3 --num-steps 4");
    taq(&run, "observe");
    folder
}

fn words<'a>(run: &'a Path, arguments: &'a str) -> Vec<&'a str> {
    arguments.split(' ').chain(["--run", run.to_str().unwrap()]).collect()
}

fn taq(run: &Path, arguments: &str) -> String {
    succeed(HOST, &words(run, arguments))
}

fn run() -> PathBuf {
    RUN.0.path().join("run")
}

fn document(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join(DOCUMENT)).unwrap()).unwrap()
}

/// Replaces one layer's weight or input.
struct Replace<'a> {
    layer: &'a str,
    weight: Option<Array>,
    input: Option<&'a dyn Fn(&Array) -> Array>,
}

impl Tap for Replace<'_> {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if call.layer.id.as_str() != self.layer {
            return call.compute();
        }
        let input = self.input.map_or_else(|| call.input.clone(), |f| f(call.input));
        call.compute_with(&input, self.weight.as_ref().unwrap_or(call.weight))
    }
}

/// The whole model on one sample, with the prompt and without.
fn velocities(
    model: &dyn Model,
    conditioning: &[Conditioning; 2],
    sample: &Npz,
    tap: &mut dyn Tap,
) -> [Vec<f32>; 2] {
    let x = sample.array("x").unwrap().expand_dims(0).unwrap();
    let timestep: f32 = sample.scalar("timestep").unwrap();
    [0, 1].map(|branch| {
        let velocity = model.denoise(&x, &[timestep], &conditioning[branch], tap).unwrap();
        velocity.to_vec_exact::<f32>().unwrap()
    })
}

/// One number a sample: the guided squared error and the guided signal, in f64.
fn guided(found: &[Vec<f32>; 2], exact: &[Vec<f32>; 2], weight: f64) -> (f64, f64) {
    let combine = |v: &[Vec<f32>; 2], i: usize| {
        let (with, without) = (f64::from(v[0][i]), f64::from(v[1][i]));
        without + weight * (with - without)
    };
    let elements = 0..exact[0].len();
    elements.fold((0.0, 0.0), |(errors, signal), i| {
        let (found, exact) = (combine(found, i), combine(exact, i));
        (errors + (found - exact).powi(2), signal + exact * exact)
    })
}

/// The input on the grid of its step: numpy's formula, element by element.
fn naive_quantize(x: &Array, bits: u32, absmax: f64, shift: &[f32]) -> Array {
    let qmax = f64::from((1 << (bits - 1)) - 1);
    let scale = (absmax / qmax) as f32;
    let values = x.to_vec_exact::<f32>().unwrap();
    let quantized = values.iter().enumerate().map(|(i, &v)| {
        let z = shift[i % shift.len()];
        ((v - z) / scale).round_ties_even().clamp(-qmax as f32 - 1.0, qmax as f32) * scale + z
    });
    Array::from_iter(quantized, x.shape())
}

#[test]
fn the_numbers_are_those_of_a_plain_computation() {
    let run = run();
    let found = document(&run);
    assert_eq!(found["sigma_map"].as_object().unwrap().keys().collect::<Vec<_>>(), ["0", "2"]);
    let cfg = found["cfg_weight"].as_f64().unwrap();
    assert!(cfg > 1.0);

    let model = Registry::linked().unwrap().model("sd3", &json!({})).unwrap();
    let manifest: Value = serde_json::from_slice(&std::fs::read(run.join("manifest.json")).unwrap()).unwrap();
    let folder = RunFolder::open(&run).unwrap();
    let (layer, post_gelu) = ("mm2.img.attn.v_proj", "mm4.txt.mlp.fc2");
    let grid = Grid::channel(3).unwrap();
    let rounded = nearest(&model.weight(&layer.into()).unwrap(), &grid, Clipping::Mse).unwrap().dequantize();
    let rounded = rounded.unwrap();
    let (mut weight, mut input) = (BTreeMap::new(), BTreeMap::new());
    for image in 0..2 {
        let prompt = manifest["images"][image]["prompt"].as_str().unwrap().to_owned();
        let conditioning = [prompt, String::new()].map(|p| model.condition(&[p]).unwrap());
        for step in [0, 2] {
            let sample = Npz::open(&folder.sample(image, step)).unwrap();
            let stats = Npz::open(&folder.step_stats(step)).unwrap();
            let index: Value =
                serde_json::from_slice(&std::fs::read(folder.step_index(step)).unwrap()).unwrap();
            let shift = stats.read::<f32>("mm4_txt_mlp_fc2__shift").unwrap().data;
            let absmax = index[post_gelu]["shifted_absmax"].as_f64().unwrap();
            let quantize = |x: &Array| naive_quantize(x, 4, absmax, &shift);
            let run = |tap: &mut dyn Tap| velocities(&*model, &conditioning, &sample, tap);
            let exact = run(&mut taq_core::Identity);
            let with_weight = run(&mut Replace { layer, weight: Some(rounded.clone()), input: None });
            let with_input = run(&mut Replace { layer: post_gelu, weight: None, input: Some(&quantize) });
            for (sums, found) in [(&mut weight, with_weight), (&mut input, with_input)] {
                let (errors, signal) = guided(&found, &exact, cfg);
                let sums: &mut (f64, f64) = sums.entry(step).or_default();
                *sums = (sums.0 + errors, sums.1 + signal);
            }
        }
    }
    let entry = |id: &str, weight: bool, bits: u64| {
        let entries = found["entries"].as_array().unwrap();
        entries.iter().find(|e| e["id"] == id && e["weight"] == weight && e["bits"] == bits).unwrap()["measured"]
            ["guided"]
            .clone()
    };
    // An input at the edge between two integers falls otherwise in batches of other sizes.
    for (entry, sums, limit) in
        [(entry(layer, true, 3), &weight, 1e-3), (entry(post_gelu, false, 4), &input, 1e-2)]
    {
        let all = sums.values().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        // Of 4 steps, 0 has σ = 1, and 2 about 0.6.
        assert_eq!(entry["buckets"].as_object().unwrap().len(), 2);
        let (early, mid) = (&entry["buckets"]["early"], &entry["buckets"]["mid"]);
        for (found, (errors, signal)) in [(&entry["all"], all), (early, sums[&0]), (mid, sums[&2])] {
            let (found, expected) = (found.as_f64().unwrap(), errors / signal);
            assert!((found / expected - 1.0).abs() < limit, "{found:e} instead of {expected:e}");
        }
    }
}

#[test]
fn every_layer_is_measured_estimated_and_ranked() {
    let found = document(&run());
    let entries = found["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 69 * 3);
    let guided = |e: &Value, kind: &str| e[kind]["guided"]["all"].as_f64().unwrap();
    for layer in entries.chunks(3) {
        let key = |e: &Value| (e["weight"].as_bool().unwrap(), e["bits"].as_u64().unwrap());
        assert_eq!(layer.iter().map(key).collect::<Vec<_>>(), [(true, 3), (true, 8), (false, 4)]);
        assert!(layer.iter().all(|e| e["id"] == layer[0]["id"]));
        let errors: Vec<f64> = layer.iter().map(|e| guided(e, "measured")).collect();
        // The last block's text goes nowhere, and so do its queries.
        if layer[0]["id"] == "mm5.txt.attn.q_proj" {
            assert_eq!(errors, [0.0; 3]);
        } else {
            assert!(errors[0] > 10.0 * errors[1] && errors[1] > 0.0, "{}: {errors:?}", layer[0]["id"]);
        }
    }
    for (width, found) in found["rank_correlation"].as_array().unwrap().iter().enumerate() {
        let list =
            |kind| entries.iter().skip(width).step_by(3).map(|e| guided(e, kind)).collect::<Vec<f64>>();
        let (measured, estimated) = (list("measured"), list("estimated"));
        let expected = taq_core::metrics::spearman(&measured, &estimated).unwrap();
        let rho = found["rho"].as_f64().unwrap();
        assert_eq!(rho, expected);
        // From 8 rows; what chance gives 69 layers is within ±0.25.
        assert!(rho > 0.7, "{found}");
        assert!(RUN.1.contains(&format!("{rho:.3}")), "{rho} is not in\n{}", RUN.1);
    }
}

#[test]
fn policies_are_told_and_refuse_what_is_stale() {
    let folder = observed();
    let run = folder.path().join("run");
    let request = || -> Value { serde_json::from_str(&taq(&run, "policy request")).unwrap() };
    assert_eq!(request().get("sensitivities"), None);
    taq(&run, "sensitivity --num-images 1 --stride 3 --bits-w 3,8 --bits-a none");
    let (told, document) = (request(), document(&run));
    let (told, entries) =
        (told["sensitivities"].as_array().unwrap(), document["entries"].as_array().unwrap());
    assert_eq!((told.len(), entries.len()), (69 * 2, 69 * 2));
    for (told, entry) in told.iter().zip(entries) {
        let error = entry["measured"]["guided"]["all"].as_f64().unwrap() as f32;
        assert_eq!(told["error"].as_f64().unwrap() as f32, error);
        assert_eq!(
            [&told["id"], &told["bits"], &told["weight"]],
            [&entry["id"], &entry["bits"], &entry["weight"]]
        );
    }
    // Only the widths that were measured; five bits on average are two layers of five at eight.
    let words = ["decide", "--policy", "budget", "--policy-config", r#"{"average_weight_bits": 5}"#, "--run"];
    succeed(HOST, &[&words[..], &[run.to_str().unwrap()]].concat());
    let plan: Value =
        serde_json::from_slice(&std::fs::read(run.join("activations/quant_config.json")).unwrap()).unwrap();
    let bits: Vec<u64> =
        plan["weight_bits"].as_object().unwrap().values().map(|b| b.as_u64().unwrap()).collect();
    assert!(bits.iter().all(|b| [3, 8].contains(b)) && bits.contains(&3) && bits.contains(&8), "{bits:?}");

    taq(&run, "observe --num-images 2 --force");
    let (code, said) = fail(HOST, &self::words(&run, "decide --policy budget --force"));
    assert_eq!(code, 2, "{said}");
    assert!(
        folded(&said).contains("since `taq observe` ran again, `taq sensitivity --force` has to"),
        "{said}"
    );
    // A file alone, copied from elsewhere, is no measurement of this run.
    std::fs::remove_file(run.join("stages/sensitivity.json")).unwrap();
    let decided = command(HOST, &self::words(&run, "decide --policy budget --force")).output().unwrap();
    let said = folded(&String::from_utf8(decided.stderr).unwrap());
    assert!(decided.status.success() && said.contains("sensitivities.json is not used"), "{said}");
}

#[test]
fn a_killed_measurement_ends_with_the_same_bytes() {
    let folder = observed();
    let run = folder.path().join("run");
    for sign in ["estimate", "mm1_img_attn_q_proj"] {
        let mut child = command(HOST, &words(&run, MEASURE)).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(300);
        while !run.join(format!("activations/sensitivities/{sign}.json")).exists() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{sign} never came");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!run.join(DOCUMENT).exists(), "it was over before it was killed");
    }
    taq(&run, MEASURE);
    assert!(document(&run) == document(&self::run()), "the documents differ");
    let bytes = |run: &Path| std::fs::read(run.join(DOCUMENT)).unwrap();
    assert!(bytes(&run) == bytes(&self::run()));
    assert!(taq(&run, MEASURE).contains("reused"));
}

#[test]
fn bad_input_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let refused = |run: &Path, arguments: &str, expected: &str| {
        let (code, said) = fail(HOST, &words(run, arguments));
        assert_eq!(code, 2, "{arguments}: {said}");
        assert!(folded(&said).contains(expected), "{arguments} should say “{expected}”: {said}");
    };
    refused(&run, "sensitivity", "run `taq calibrate` on this folder first");
    taq(&run, "calibrate --num-images 1 --num-steps 1");
    refused(&run, "sensitivity", "run `taq observe` on this folder first");
    taq(&run, "observe");
    refused(&run, "sensitivity --bits-w 4,9", "`9` is no number of bits; expected 2 to 8 each");
    refused(&run, "sensitivity --num-images 2", "num_images is 2 and stride 3, expected 1 to 1 (calibrated)");
    refused(&run, "sensitivity --bits-w none --bits-a none", "both empty, expected at least one width");
    assert!(!run.join("activations/sensitivities").exists());
}
