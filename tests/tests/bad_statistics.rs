//! Statistics that are old or incomplete, and activations that are odd: a clear error, or handled right.

use std::path::Path;

use mlx_rs::Array;
use serde_json::Value;
use taq_core::artifacts::{Npz, RunFolder};
use taq_core::pipeline::Sample;
use taq_tests::paths::emoji_sd3;
use taq_tests::taq::{fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn calibrated(root: &Path, more: &[&str]) -> String {
    let run = root.to_str().unwrap().to_owned();
    let arguments = ["calibrate", "--num-images", "2", "--num-steps", "3", "--calib-dir", &run];
    succeed(HOST, &[&arguments[..], more].concat());
    run
}

#[track_caller]
fn refused(arguments: &[&str], expected: &[&str]) {
    let (code, said) = fail(HOST, arguments);
    assert!(code == 2 && !said.contains("panicked"), "{said}");
    for part in expected {
        assert!(folded(&said).contains(part), "{arguments:?} should say “{part}”: {said}");
    }
}

fn document(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = document(path);
    change(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

#[test]
fn old_and_incomplete_statistics_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let run = calibrated(&folder.path().join("run"), &[]);
    let paths = RunFolder::open(Path::new(&run)).unwrap();
    let decide = ["decide", "--run", &run];
    let observe = ["observe", "--run", &run];
    succeed(HOST, &observe);
    let whole = std::fs::read(paths.step_stats(1)).unwrap();

    // The ancestor's, and ours of before.
    let index = std::fs::read(paths.layer_statistics()).unwrap();
    change(&paths.layer_statistics(), |v| v["format"] = "per_timestep_npz_v2".into());
    let old = [
        "is of another version",
        "found \"per_timestep_npz_v2\"",
        "layer_statistics.json",
        "taq observe --force",
    ];
    refused(&decide, &old);
    refused(&["plot", "--run", &run], &["per_timestep_npz_v4", "per_timestep_npz_v2"]);
    std::fs::write(paths.layer_statistics(), index).unwrap();
    let scalars = std::fs::read(paths.step_index(1)).unwrap();
    change(&paths.step_index(1), |v| {
        v["mm0.img.attn.q_proj"].as_object_mut().unwrap().remove("range_max");
    });
    refused(&decide, &["step_1_index.json", "missing field `range_max`", "taq observe --force"]);
    std::fs::write(paths.step_index(1), scalars).unwrap();

    // A step is missing in the middle: an error, and observing again brings it back.
    for lost in [paths.step_stats(1), paths.step_index(1)] {
        std::fs::remove_file(&lost).unwrap();
        refused(&decide, &["the statistics of step 1", "taq observe"]);
        refused(&["plot", "--run", &run], &["the statistics of step 1"]);
        succeed(HOST, &observe);
        assert!(std::fs::read(paths.step_stats(1)).unwrap() == whole);
    }
    succeed(HOST, &decide);

    // Statistics that came from elsewhere are not taken for this run's.
    std::fs::remove_file(paths.stage("observe")).unwrap();
    refused(&observe, &["nothing says how `activations/layer_statistics.json` was made", "--force"]);
    succeed(HOST, &[&observe[..], &["--force"]].concat());
}

#[test]
fn an_infinite_value_is_named_by_layer_and_step() {
    let folder = tempfile::tempdir().unwrap();
    let run = calibrated(&folder.path().join("run"), &[]);
    let paths = RunFolder::open(Path::new(&run)).unwrap();
    let npz = Npz::open(&paths.sample(1, 1)).unwrap();
    let x = npz.array("x").unwrap();
    let mut values = x.to_vec_exact::<f32>().unwrap();
    values[7] = f32::INFINITY;
    let sample = Sample {
        x: Array::from_slice(&values, x.shape()),
        timestep: npz.scalar("timestep").unwrap(),
        sigma: npz.scalar("sigma").unwrap(),
        step: 1,
        image: 1,
        is_final: false,
    };
    drop(npz);
    sample.write(&paths, None).unwrap();
    for observer in ["avg-minmax", "minmax,percentile,mse"] {
        let expected = ["the input of mm0.img.attn.q_proj at step 1 holds NaN or infinite values"];
        refused(&["observe", "--run", &run, "--observer", observer, "--force"], &expected);
    }
    refused(&["profile", "--run", &run], &["at step 1 holds NaN or infinite values", "the input of mm0."]);
    // What was before is kept; of the step itself there is nothing.
    assert!(paths.step_index(0).exists() && !paths.step_stats(1).exists() && !paths.step_index(1).exists());
    assert!(!paths.layer_statistics().exists() && !paths.post_gelu_part(1).exists());
}

/// Sets all values of a half-precision tensor in a safetensors file.
fn fill(bytes: &mut [u8], name: &str, value: u16) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header[name]["dtype"], "F16", "{name}");
    let at = |i: usize| 8 + length + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    for pair in bytes[at(0)..at(1)].as_chunks_mut::<2>().0 {
        *pair = value.to_le_bytes();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// A model in which one layer always sees zeros and another always the same number.
#[test]
fn constant_and_all_zero_activations_are_handled() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(&emoji_sd3(), &model);
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    // GELU(0) is 0; GELU(1) is 0.8412.
    for (block, bias) in [(0, 0), (1, 0x3c00)] {
        fill(&mut bytes, &format!("transformer_blocks.{block}.ff.net.0.proj.weight"), 0);
        fill(&mut bytes, &format!("transformer_blocks.{block}.ff.net.0.proj.bias"), bias);
    }
    std::fs::write(&weights, bytes).unwrap();

    let root = folder.path().join("run");
    let run = calibrated(&root, &["--model", model.to_str().unwrap()]);
    let paths = RunFolder::open(&root).unwrap();
    let observers = "percentile,avg-minmax,minmax,mse";
    for first in [observers, "avg-minmax", "mse"] {
        succeed(HOST, &["observe", "--run", &run, "--observer", first, "--force"]);
        for policy in ["baseline-a8", "multitier"] {
            succeed(HOST, &["decide", "--run", &run, "--policy", policy, "--force"]);
        }
        let scalars = document(&paths.step_index(2));
        let plan = document(&paths.quant_config());
        let over_time = document(&paths.temporal_analysis());
        let npz = Npz::open(&paths.step_stats(2)).unwrap();
        for (layer, expected) in [("mm0.img.mlp.fc2", 0.0), ("mm1.img.mlp.fc2", 0.8412)] {
            let seen = |field: &str| scalars[layer][field].as_f64().unwrap();
            for field in ["tensor_min", "tensor_max", "range_max"] {
                let slack = if first == "mse" { 0.02 } else { 1e-3 };
                assert!((seen(field) - expected).abs() < slack, "{layer} {field}: {}", seen(field));
            }
            // The shift is the constant itself; nothing is left.
            assert!(
                (seen("shift_absmax") - expected).abs() < 0.02 && seen("shifted_absmax") < 0.02,
                "{layer}"
            );
            let name = |field: &str| format!("{}__{field}", layer.replace('.', "_"));
            let counts = npz.vec::<u64>(&name("hist_counts"), &[256]).unwrap();
            let edges = npz.vec::<f32>(&name("hist_edges"), &[257]).unwrap();
            // Two images with and without prompt, 64 tokens of 768 channels.
            assert_eq!(counts.iter().sum::<u64>(), 4 * 64 * 768);
            assert!(edges.windows(2).all(|e| e[0] < e[1]), "{layer}: {edges:?}");
            let scale = plan["per_timestep"]["2"][layer]["scale"].as_f64().unwrap();
            assert!(scale > 0.0 && scale.is_finite());
            let ratio = over_time["layer_stats"][layer]["variability_ratio"].as_f64().unwrap();
            assert!((ratio - 1.0).abs() < 1e-3, "{layer}: {ratio}");
        }
    }
    let said = succeed(HOST, &["profile", "--run", &run]);
    let row = said.lines().find(|l| l.starts_with("mm0.img.mlp.fc2")).unwrap();
    assert!(row.contains("0.0000") && row.ends_with("0.0 %"), "{row}");
    succeed(HOST, &["plot", "--run", &run, "--layers", "mm0.img.mlp.fc2", "mm1.img.mlp.fc2"]);
}
