//! A plan that smooths layers, from the decision to the images.

use std::path::Path;

use serde_json::{Value, json};
use taq_core::artifacts::Npz;
use taq_core::quant::to_vec;
use taq_core::registry::Registry;
use taq_core::{LayerId, Model};
use taq_plugins as _;
use taq_tests::taq::succeed;
use taq_tests::wasm::answering;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");
const ALPHA: f32 = 0.5;

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// W4A6, smoothed in all layers that are not behind a GELU.
fn plan(request: &Value) -> String {
    let steps = request["timesteps"].as_array().unwrap().len();
    let layer = |layer: &Value| {
        let mut plan =
            json!({ "id": layer["id"], "weight_bits": 4, "activation_bits": vec![6; steps], "shift": false });
        match layer["post_gelu"] == true {
            true => plan["shift"] = true.into(),
            false => plan["smoothquant_alpha"] = ALPHA.into(),
        }
        plan
    };
    let layers: Vec<Value> = request["layers"].as_array().unwrap().iter().map(layer).collect();
    json!({ "format": "taq.policy_plan.v1", "layers": layers }).to_string()
}

/// The factors of a layer and what its input reaches at every step, from the statistics on disk and the weight.
fn naive(run: &Path, model: &dyn Model, id: &str, steps: usize) -> (Vec<f32>, Vec<f32>) {
    let id = LayerId::from(id);
    let layer = model.spec().layer(&id).unwrap();
    let weight = to_vec(&model.weight(&id).unwrap()).unwrap();
    let reach = |step: usize| -> Vec<f32> {
        let npz = Npz::open(&run.join(format!("activations/timestep_stats/step_{step}.npz"))).unwrap();
        let of = |field: &str| -> Vec<f32> {
            npz.vec(&format!("{}__{field}", id.array_prefix()), &[layer.in_features]).unwrap()
        };
        of("avg_min").iter().zip(of("avg_max")).map(|(l, h)| l.abs().max(h.abs())).collect()
    };
    let reaches: Vec<Vec<f32>> = (0..steps).map(reach).collect();
    let factors: Vec<f32> = (0..layer.in_features)
        .map(|c| {
            let x = reaches.iter().fold(0.0_f32, |most, r| most.max(r[c]));
            let w = weight.chunks(layer.in_features).fold(0.0_f32, |most, row| most.max(row[c].abs()));
            (f64::from(x).sqrt() / f64::from(w).sqrt()) as f32
        })
        .collect();
    let smoothed =
        |reach: &Vec<f32>| reach.iter().zip(&factors).fold(0.0_f32, |most, (r, m)| most.max(r / m));
    let absmax = reaches.iter().map(smoothed).collect();
    (factors, absmax)
}

#[track_caller]
fn assert_near(found: &Value, expected: f32) {
    let found = found.as_f64().unwrap();
    assert!((found / f64::from(expected) - 1.0).abs() < 1e-5, "{found} for {expected}");
}

#[test]
fn smoothed_layers_are_planned_rounded_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let at = run.to_str().unwrap();
    let taq = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').chain(["--run", at]).collect();
        succeed(HOST, &arguments)
    };
    taq("calibrate --num-images 3 --num-steps 3");
    taq("observe");
    let request: Value = serde_json::from_str(&taq("policy request")).unwrap();
    let policy = folder.path().join("smooth.wasm");
    std::fs::write(&policy, answering(&plan(&request))).unwrap();
    taq(&format!("decide --policy {}", policy.display()));

    let config = read(&run.join("activations/quant_config.json"));
    let smoothed = config["smoothquant"].as_object().unwrap();
    assert!(smoothed.len() > 50 && smoothed.len() < request["layers"].as_array().unwrap().len());
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    let model = Registry::linked().unwrap().model("sd3", &json!({})).unwrap();
    for id in ["mm0.img.attn.q_proj", "mm3.txt.attn.o_proj", "mm5.img.mlp.fc1"] {
        let (factors, absmax) = naive(&run, &*model, id, 3);
        let planned = smoothed[id]["scale"].as_array().unwrap();
        assert_eq!(planned.len(), factors.len());
        planned.iter().zip(&factors).for_each(|(found, expected)| assert_near(found, *expected));
        for (step, absmax) in absmax.iter().enumerate() {
            let grid = &config["per_timestep"][step.to_string()][id];
            assert_near(&grid["absmax"], *absmax);
            assert_near(&grid["scale"], absmax / 31.0);
        }
    }

    // The rounder's layers with the factors in them are those of the plan's factors.
    let round = "--rows 8 --held-out-rows 4";
    taq(&format!("round --rounder nearest {round}"));
    taq("generate --prompt swimmer --num-steps 3");
    let latents = |variant: &str| {
        let npz = Npz::open(&run.join("generated").join(variant).join("latents.npz")).unwrap();
        to_vec(&npz.array("latents").unwrap()).unwrap()
    };
    let nearest = latents("nearest");
    assert!(nearest == latents("quantized") && nearest != latents("full-precision"));

    // What is made of all blocks together begins with what the factors were taken out of again.
    let settings = folder.path().join("settings.json");
    std::fs::write(&settings, r#"{"iters": 4, "polish": 2, "end_to_end": 30, "start": "nearest"}"#).unwrap();
    taq(&format!(
        "round --force --rounder taq-dit --batch-size 4 --rounder-config {} {round}",
        settings.display()
    ));
    let weights = read(&run.join("quantized_weights/config.json"));
    let number = |value: &Value| value.as_f64().unwrap();
    let all = &weights["end_to_end"];
    assert!(number(&all["final_loss"]) < number(&all["before_loss"]), "{all}");
    let npz = Npz::open(&run.join("quantized_weights/weights/mm0.npz")).unwrap();
    let id = "mm0.img.attn.q_proj";
    let multiplier: Vec<f32> = npz.vec("mm0_img_attn_q_proj__multiplier", &[192]).unwrap();
    let planned = smoothed[id]["scale"].as_array().unwrap();
    planned.iter().zip(&multiplier).for_each(|(planned, found)| assert_near(planned, *found));
    taq("generate --prompt swimmer --num-steps 3");
}
