//! Block boundaries on disk: what is learned from them is what is learned without, and what is wrong with them is named.

use std::path::Path;

use taq_tests::taq::{fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn taq(run: &Path, arguments: &str) -> String {
    let run = run.to_str().unwrap();
    let arguments: Vec<&str> = arguments.split(' ').chain(["--run", run]).collect();
    succeed(HOST, &arguments)
}

#[test]
fn a_cache_gives_the_same_errors_and_its_damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = &folder.path().join("run");
    let cache = run.join("adaround_cache");
    succeed(
        HOST,
        &["calibrate", "--num-images", "4", "--num-steps", "3", "--calib-dir", run.to_str().unwrap()],
    );
    taq(run, "observe");
    taq(run, "decide");
    taq(run, "cache");

    let round = |extra: &str| {
        taq(run, &format!("round --rounder nearest --rows 6 --held-out-rows 2 --force{extra}"));
        let text = std::fs::read_to_string(run.join("quantized_weights/config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let blocks = config["block_metrics"].as_array().unwrap().clone();
        let error = |b: &serde_json::Value, name: &str| b[name].as_f64().unwrap();
        blocks.iter().map(|b| (error(b, "nearest_loss"), error(b, "final_loss"))).collect::<Vec<_>>()
    };
    // Errors of the same rows through the same weights. Not to the bit: batches of other sizes end in other last digits,
    // and an input at the edge between two integers falls otherwise.
    let (computed, read) = (round(""), round(&format!(" --cache {}", cache.display())));
    assert_eq!((computed.len(), read.len()), (6, 6));
    for (block, (a, b)) in computed.iter().zip(&read).enumerate() {
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        assert!(near(a.0, b.0) && near(a.1, b.1), "block {block}: computed {a:?}, read {b:?}");
    }

    // One damaged file among many: named, and the others are enough.
    let damaged = cache.join("samples/0001_001.npz");
    let bytes = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    let run_text = run.to_str().unwrap();
    let again = |extra: &[&str]| {
        let cache = cache.to_str().unwrap();
        let head = ["round", "--rounder", "nearest", "--force", "--run", run_text, "--cache", cache];
        let output = taq_tests::taq::command(HOST, &[&head[..], extra].concat()).output().unwrap();
        (output.status.code(), folded(&String::from_utf8_lossy(&output.stderr)))
    };
    let (code, said) = again(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("left out of the cache") && said.contains("0001_001.npz"), "{said}");

    // None left. (Other settings, since what is done already is not done again.)
    for sample in std::fs::read_dir(cache.join("samples")).unwrap() {
        std::fs::write(sample.unwrap().path(), b"no npz").unwrap();
    }
    let (code, said) = again(&["--rows", "5"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(".npz"), "{said}");

    // Of another model, of nothing, of no such block.
    let metadata = cache.join("metadata.json");
    let text = std::fs::read_to_string(&metadata).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    document["samples"] = serde_json::json!([]);
    std::fs::write(&metadata, document.to_string()).unwrap();
    let (code, said) = again(&[]);
    assert!(code == Some(2) && said.contains("holds no samples"), "{said}");
    document["model"] = "0123456789abcdef".into();
    std::fs::write(&metadata, document.to_string()).unwrap();
    let (code, said) = again(&[]);
    assert!(code == Some(2) && said.contains("its blocks are of model 0123456789ab"), "{said}");
    let (code, said) = fail(HOST, &["cache", "--run", run_text, "--blocks", "mm9"]);
    assert!(
        code == 2 && folded(&said).contains("the model has no block `mm9`; its blocks are mm0"),
        "{said}"
    );
}
