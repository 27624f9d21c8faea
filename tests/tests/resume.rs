//! `kill -9` at any point, then the same command: it goes on and ends with the bytes of an uninterrupted run.

use std::path::Path;
use std::time::{Duration, Instant};

use taq_tests::taq::{assert_same_artifacts, command, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

const MANIFEST: &str = r#"
output = "unused"
seed = 7

[calibrate]
num_images = 6
num_steps = 4
batch_size = 2

[observe]
batch_size = 3

[decide]

[round]
rounder = { name = "adaround", iters = 40, batch_size = 8 }
rows = 24
held_out_rows = 8

[generate]
prompts = ["racing car", "parachute"]
"#;

/// Starts the run, kills it once `sign` is there, and says whether it was still running.
fn kill_at(manifest: &str, run: &Path, sign: &str) -> bool {
    let output = run.to_str().unwrap();
    let mut child = command(HOST, &["run", manifest, "--output", output]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    while !run.join(sign).exists() {
        assert!(Instant::now() < deadline, "{sign} never came");
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("pipeline.toml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    let manifest = manifest.to_str().unwrap();
    let whole = folder.path().join("whole");
    succeed(HOST, &["run", manifest, "--output", whole.to_str().unwrap()]);

    let killed = folder.path().join("killed");
    let signs = [
        // In the middle of the first batch, after it, in the middle of observing, after the first block, amid images.
        "samples/0000_001.npz",
        "manifest.json",
        "activations/timestep_stats/step_1_index.json",
        "quantized_weights/weights/mm0.json",
        "generated/full-precision/0000.png",
    ];
    for sign in signs {
        assert!(kill_at(manifest, &killed, sign), "the run was over before {sign} was seen");
    }
    succeed(HOST, &["run", manifest, "--output", killed.to_str().unwrap()]);
    assert_same_artifacts(&whole, &killed);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: &str| {
        let run = folder.path().join(name);
        let arguments = ["calibrate", "--num-images", "2", "--num-steps", "3", "--seed", seed, "--calib-dir"];
        succeed(HOST, &[&arguments[..], &[run.to_str().unwrap()]].concat());
        run
    };
    let (a, b, other) = (run("a", "1"), run("b", "1"), run("other", "2"));
    assert_same_artifacts(&a, &b);
    let sample = |run: &Path| std::fs::read(run.join("samples/0000_000.npz")).unwrap();
    assert_ne!(sample(&a), sample(&other));
}
