//! Bits that `round` is told replace the plan's, for weights and for inputs, down to the images.

use std::path::Path;

use taq_tests::taq::succeed;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// The images of a run that is planned and rounded with these flags, and what its plan is said to be.
fn images(run: &Path, decide: &str, round: &str) -> (Vec<Vec<u8>>, serde_json::Value) {
    let taq = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').chain(["--run", run.to_str().unwrap()]).collect();
        succeed(HOST, &arguments)
    };
    taq("calibrate --num-images 2 --num-steps 3");
    taq("observe");
    taq(&format!("decide --policy-config {decide}"));
    taq(&format!("round --rounder nearest --rows 2 --held-out-rows 1{round}"));
    taq("generate --prompt swimmer --num-steps 3");
    let all = ["nearest", "quantized"].map(|variant| run.join("generated").join(variant));
    let images = all.iter().map(|folder| {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "png"));
        assert_eq!(files.len(), 1);
        std::fs::read(&files[0]).unwrap()
    });
    let report = std::fs::read(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    (images.collect(), report["plan"]["average_activation_bits"].clone())
}

#[test]
fn bits_of_round_replace_the_plan_s() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, decide: &str, round: &str| images(&folder.path().join(name), decide, round);
    let planned = run("planned", r#"{"bits_w":3,"bits_a":5}"#, "");
    let replaced = run("replaced", r#"{"bits_w":8,"bits_a":8}"#, " --bits-w 3 --bits-a 5");
    assert_eq!(planned.1, 5.0);
    assert!(planned == replaced);
    // Modulation and embeddings: what was rounded is in force for both variants.
    let modulation = run("modulation", r#"{"bits_w":3,"bits_a":5}"#, " --weight-only-bits 4");
    assert!(modulation.0[0] != planned.0[0] && modulation.0[1] != planned.0[1]);
    let other = run("other", r#"{"bits_w":8,"bits_a":8}"#, " --bits-w 3");
    assert!(other.0[1] != planned.0[1]);
}
