//! What comes out of GELU: counted and measured like a naive computation over the same activations.

use std::collections::BTreeMap;

use mlx_rs::Array;
use serde_json::{Value, json};
use taq_core::artifacts::{Npz, RunFolder};
use taq_core::pipeline::Guidance;
use taq_core::registry::Registry;
use taq_core::{LinearCall, Result, Tap};
use taq_plugins as _;
use taq_tests::taq::{fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// All inputs of post-GELU layers, by prefix of their arrays.
#[derive(Default)]
struct Keep(BTreeMap<String, Array>);

impl Tap for Keep {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if call.layer.post_gelu {
            self.0.insert(call.layer.id.array_prefix(), call.input.clone());
        }
        call.compute()
    }
}

#[test]
fn it_is_a_naive_computation_over_real_activations() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let run = root.to_str().unwrap();
    succeed(HOST, &["calibrate", "--num-images", "2", "--num-steps", "2", "--calib-dir", run]);
    // Two images at the first step, one at the second.
    let profile = ["profile", "--num-samples", "3", "--run", run];
    let said = succeed(HOST, &profile);

    let paths = RunFolder::open(&root).unwrap();
    let npz = Npz::open(&root.join("activations/post_gelu_profile.npz")).unwrap();
    assert_eq!(npz.vec::<i64>("steps", &[2]).unwrap(), [0, 1]);
    let edges = npz.vec::<f32>("hist_edges", &[513]).unwrap();
    assert_eq!((edges[0], edges[1], edges[256], edges[512]), (-8.0, -7.96875, 0.0, 8.0));

    let manifest: Value = serde_json::from_slice(&std::fs::read(paths.manifest()).unwrap()).unwrap();
    let model = Registry::linked().unwrap().model("sd3", &json!({})).unwrap();
    let guidance = Guidance::new(manifest["cfg_scale"].as_f64().unwrap() as f32).unwrap();
    let prompts = [0, 1].map(|i| manifest["images"][i]["prompt"].as_str().unwrap().to_owned());
    let (prompts, empty) = (model.condition(&prompts).unwrap(), model.condition(&[String::new()]).unwrap());
    let (mut below, mut values) = (0_u64, 0_u64);
    for (step, images) in [2, 1].into_iter().enumerate() {
        let samples: Vec<Npz> = (0..images).map(|i| Npz::open(&paths.sample(i, step)).unwrap()).collect();
        let x: Vec<Array> = samples.iter().map(|s| s.array("x").unwrap()).collect();
        let x = mlx_rs::ops::stack(&x, 0).unwrap();
        let timestep: f32 = samples[0].scalar("timestep").unwrap();
        let rows: Vec<usize> = (0..images).collect();
        let conditioning = guidance.conditioning(&prompts.rows(&rows).unwrap(), &empty).unwrap();
        let mut keep = Keep::default();
        guidance.velocity(&*model, &x, timestep, &conditioning, &mut keep).unwrap();
        // Six blocks, image and text; the last block has no text behind its attention.
        assert_eq!(keep.0.len(), 11);
        for (prefix, input) in keep.0 {
            let channels = input.dim(-1) as usize;
            let input = input.to_vec_exact::<f32>().unwrap();
            let row = |field: &str| -> Vec<f64> {
                let all = npz.vec::<f32>(&format!("{prefix}__{field}"), &[2, channels]).unwrap();
                all[step * channels..][..channels].iter().map(|&v| f64::from(v)).collect()
            };
            let counts = npz.vec::<u64>(&format!("{prefix}__count"), &[2, channels]).unwrap();
            let (mean, std, min, max) = (row("mean"), row("std"), row("min"), row("max"));
            for c in 0..channels {
                let of: Vec<f64> = input.iter().skip(c).step_by(channels).map(|&v| f64::from(v)).collect();
                let n = of.len() as f64;
                let expected_mean = of.iter().sum::<f64>() / n;
                let variance = of.iter().map(|v| (v - expected_mean).powi(2)).sum::<f64>() / n;
                let near = |found: f64, expected: f64, what: &str| {
                    let off = (found - expected).abs() <= 1e-6 * expected.abs();
                    assert!(off, "{prefix} step {step} channel {c}: {what} {found} instead of {expected}");
                };
                assert_eq!(counts[step * channels + c], of.len() as u64);
                near(mean[c], expected_mean, "mean");
                near(std[c], variance.sqrt(), "std");
                assert_eq!(min[c], of.iter().copied().fold(f64::INFINITY, f64::min));
                assert_eq!(max[c], of.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            }
            let histogram = npz.vec::<u64>(&format!("{prefix}__hist_counts"), &[2, 512]).unwrap();
            let found = &histogram[step * 512..][..512];
            let mut expected = vec![0_u64; 512];
            for &v in &input {
                let above = edges.iter().filter(|&&edge| edge <= v).count();
                expected[above.clamp(1, 512) - 1] += 1;
            }
            assert_eq!(found, expected, "{prefix} step {step}");
            assert_eq!(found.iter().sum::<u64>(), input.len() as u64);
            if prefix == "mm0_img_mlp_fc2" {
                below += input.iter().filter(|v| **v < 0.0).count() as u64;
                values += input.len() as u64;
            }
        }
    }
    // The table says it of all steps.
    let row = said.lines().find(|l| l.starts_with("mm0.img.mlp.fc2")).unwrap();
    assert!(row.contains(&format!("  {values}  ")), "{row}: {values} values");
    assert!(
        row.ends_with(&format!("{:.1} %", 100.0 * below as f64 / values as f64)),
        "{row}: {below} below 0"
    );

    // A second time nothing is computed; a lost file is, from the parts, to the same bytes.
    let path = root.join("activations/post_gelu_profile.npz");
    let bytes = std::fs::read(&path).unwrap();
    assert!(succeed(HOST, &profile).contains("reused"));
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(root.join("activations/post_gelu/step_1.npz")).unwrap();
    succeed(HOST, &profile);
    assert!(std::fs::read(&path).unwrap() == bytes, "the bytes differ");

    let refused = |arguments: &[&str], expected: &str| {
        let (code, said) = fail(HOST, &[arguments, &["--run", run]].concat());
        assert!(
            code == 2 && folded(&said).contains(expected),
            "{arguments:?} should say “{expected}”: {said}"
        );
    };
    refused(&["profile"], "profile: `images` was [2,1], is [2,2]");
    refused(&["profile", "--num-samples", "1"], "num_samples is 1, expected 2 (one at each timestep) to 4");
    let nothing = folder.path().join("nothing");
    let (code, said) = fail(HOST, &["profile", "--run", nothing.to_str().unwrap()]);
    assert!(code == 2 && folded(&said).contains("run `taq calibrate` on this folder first"), "{said}");
}
