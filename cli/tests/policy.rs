//! `taq policy`, on the modules that come with taq.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{taq, taq_in};
use serde_json::{Value, json};

fn module(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../policies/{name}/{name}.wasm"));
    path.to_str().unwrap().to_owned()
}

/// Two layers at two timesteps, without statistics.
fn request(settings: &Value) -> String {
    let layer = |id: &str, role: &str| {
        json!({ "id": id, "block": "mm0", "stream": "image", "role": role, "in_features": 4, "out_features": 4,
                "post_gelu": role == "fc2" })
    };
    json!({
        "format": "taq.policy_request.v1", "model": "toy", "layers": [layer("q", "q"), layer("fc2", "fc2")],
        "timesteps": [{ "step": 0, "sigma": 1.0 }, { "step": 1, "sigma": 0.5 }], "statistics": [],
        "weight_bits": [4, 8], "activation_bits": [6, 8], "settings": settings,
    })
    .to_string()
}

#[test]
fn inspect_tells_what_a_module_is() {
    let shown = taq(&["policy", "inspect", &module("baseline-a8")]).exits(0).stdout;
    for part in [
        "policy `baseline-a8`",
        "taq.read_request",
        "taq_policy_abi_v1",
        "blake3",
        "67.1 MB",
        "million instructions",
    ] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("no.wasm"), "text").unwrap();
    taq_in(folder.path(), &["policy", "inspect", "no.wasm"]).exits(2).says("no WebAssembly");
    taq_in(folder.path(), &["policy", "inspect", "gone.wasm"]).exits(2).says("gone.wasm");
}

#[test]
fn run_prints_the_same_plan_for_a_name_and_a_module_and_diff_tells_plans_apart() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("request.json"), request(&json!({}))).unwrap();
    let run = |policy: &str, more: &[&str]| {
        taq_in(here, &[&["policy", "run", policy, "--request", "request.json"], more].concat())
            .exits(0)
            .stdout
    };
    let plan = run("baseline-a8", &[]);
    assert_eq!(plan, run(&module("baseline-a8"), &[]));
    let other = run(&module("baseline-a8"), &["--config", r#"{"bits_a": 6}"#]);
    fs::write(here.join("a.json"), &plan).unwrap();
    fs::write(here.join("b.json"), other).unwrap();
    let diff = taq_in(here, &["policy", "diff", "a.json", "b.json"]).exits(0).stdout;
    assert!(diff.contains("2 of 2 layers differ") && diff.contains("8.00 → 6.00"), "{diff}");
    let same = taq_in(here, &["policy", "diff", "a.json", "a.json"]).exits(0).stdout;
    assert!(same.contains("0 of 2 layers differ"), "{same}");
    taq_in(
        here,
        &["policy", "run", "baseline-a8", "--request", "request.json", "--config", r#"{"bits_a": 5}"#],
    )
    .exits(2)
    .says("bits_a");
    taq_in(here, &["policy", "diff", "a.json", "request.json"]).exits(2).says("request.json");
}

#[test]
fn bench_times_policies_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("request.json"), request(&json!({}))).unwrap();
    fs::copy(module("baseline-a8"), here.join("a.wasm")).unwrap();
    fs::copy(module("baseline-a8"), here.join("b.wasm")).unwrap();
    let bench = ["policy", "bench", "./a.wasm", "./b.wasm", "--request", "request.json", "--runs", "3"];
    let shown = taq_in(here, &bench).exits(0).stdout;
    assert!(shown.contains("2 layers × 2 timesteps"), "{shown}");
    for (head, unit) in [("decide, median", " ms"), ("with documents, best", " ms"), ("fuel", " million")] {
        let row =
            shown.lines().find(|line| line.starts_with(head)).unwrap_or_else(|| panic!("{head}:\n{shown}"));
        assert_eq!(row.matches(unit).count(), 2, "{row}");
    }
    taq_in(here, &["policy", "bench", "--request", "request.json"]).exits(2).says("POLICY");
}

#[test]
fn test_checks_a_folder_of_cases() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let module = module("baseline-a8");
    taq_in(here, &["policy", "test", &module, "."]).exits(2).says("has no case");
    fs::write(here.join("plain.request.json"), request(&json!({}))).unwrap();
    fs::write(here.join("wrong.request.json"), request(&json!({ "bits_w": 3 }))).unwrap();
    taq_in(here, &["policy", "test", &module, "."]).exits(1).says("2 of 2 cases failed");
    taq_in(here, &["policy", "test", &module, ".", "--bless"]).exits(0);
    assert!(fs::read_to_string(here.join("wrong.error.txt")).unwrap().contains("bits_w"));
    taq_in(here, &["policy", "test", &module, "."]).exits(0);
    taq_in(here, &["policy", "test", "multitier", "."]).exits(1);
}
