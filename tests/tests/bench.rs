//! `taq bench`: the table, the documents, and what it refuses.

use std::fs;
use std::path::Path;

use taq_core::artifacts::read_document;
use taq_core::pipeline::BenchReport;
use taq_tests::paths::repository;
use taq_tests::taq::{artifacts, fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");
const PROMPTS: [&str; 6] = ["--prompt", "racing car", "--prompt", "parachute", "--prompt", "maldives flag"];

fn report(folder: &Path) -> BenchReport {
    read_document(&folder.join("bench.json")).unwrap()
}

#[test]
fn models_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (run, out) = (folder.path().join("run"), folder.path().join("out"));
    let at = ["--run", run.to_str().unwrap()];
    for stage in [
        &["calibrate", "--num-images", "2", "--steps", "6"][..],
        &["observe"],
        &["decide"],
        &["round", "--rounder", "nearest", "--bits-w", "3"],
    ] {
        succeed(HOST, &[stage, &at].concat());
    }
    let before = artifacts(&run);
    let config = format!("quantized,w8a8,w3a8,nearest,{}", run.display());
    let bench =
        [&["bench", "--config", &config, "--batch", "2", "--out", out.to_str().unwrap()][..], &at].concat();
    let table = succeed(HOST, &[&bench[..], &PROMPTS].concat());
    for row in ["s/image", "RSS", "FID", "KID × 1000", "IS", "prompts right", "PSNR, pooled", "latent error"]
    {
        assert!(table.contains(row), "{row} in {table}");
    }
    assert_eq!(artifacts(&run), before, "the run folder is only read");

    let found = report(&out);
    let names: Vec<&str> = found.entries.iter().map(|e| e.name.as_str()).collect();
    // Full precision comes first though nobody asked: the others are measured against it.
    assert_eq!(names, ["fp", "quantized", "w8a8", "w3a8", "nearest", run.to_str().unwrap()]);
    assert_eq!((found.reference.as_deref(), found.num_steps), (Some("fp"), 6));
    let [fp, quantized, w8, w3, nearest, other] = &found.entries[..] else { panic!("{names:?}") };
    assert!(fp.paired.is_none() && fp.distances.is_none());
    // Three images, two a batch: the last one is not full and not timed.
    assert!(found.entries.iter().all(|e| e.latency.batches == 1 && e.latency.warm_up == 1 && e.images == 3));
    assert!(found.entries.iter().all(|e| e.latency.min > 0.0 && e.memory.peak_rss > 100 << 20));
    let error = |e: &taq_core::pipeline::BenchEntry| e.paired.as_ref().unwrap().latent_error;
    assert!(error(w8) < 0.5 * error(w3), "{} {}", error(w8), error(w3));
    // All of these are the plan's inputs and weights rounded to nearest at three bits.
    for same in [w3, nearest, other] {
        assert_eq!((error(same), same.weight_bytes), (error(quantized), quantized.weight_bytes));
    }
    assert_eq!((w3.weight_bits, w3.activation_bits), (Some(3.0), Some(8.0)));
    assert!(w8.distances.as_ref().unwrap().frechet < w3.distances.as_ref().unwrap().frechet);
    let page = fs::read_to_string(out.join("bench.md")).unwrap();
    assert_eq!(page.lines().filter(|l| l.starts_with('|')).count(), 2 + 6, "{page}");

    // The images of one bench are the reference of another: the same distances.
    let again = folder.path().join("again");
    let fp = out.join("fp");
    let flags = ["bench", "--config", "w3a8", "--batch", "2", "--out", again.to_str().unwrap()];
    let reference = ["--reference-dir", fp.to_str().unwrap()];
    succeed(HOST, &[&flags[..], &at, &PROMPTS, &reference].concat());
    let found = report(&again);
    assert_eq!(found.entries.len(), 1);
    assert!((error(&found.entries[0]) - error(w3)).abs() < 1e-9);
    let frechet = |e: &taq_core::pipeline::BenchEntry| e.distances.as_ref().unwrap().frechet;
    // PNG files have 8 bits.
    let (a, b) = (frechet(&found.entries[0]), frechet(w3));
    assert!((a - b).abs() < 0.02 * b, "{a} {b}");
    // Images of the same prompts and noise are pairs, with or without latents; those of other noise are not.
    let paired = |r: &BenchReport| r.entries.last().unwrap().distances.as_ref().unwrap().kernel.paired;
    assert!(paired(&report(&out)) && paired(&found));
    fs::remove_file(fp.join("latents.npz")).unwrap();
    for (seed, expected) in [("0", true), ("9", false)] {
        succeed(HOST, &[&flags[..], &at, &PROMPTS, &reference, &["--seed", seed]].concat());
        let found = report(&again);
        assert_eq!(paired(&found), expected, "seed {seed}");
        assert!(found.entries[0].paired.is_none());
    }

    for (flag, value, reason) in [
        ("--steps", "5", "was made with steps 6, these images with 5"),
        ("--cfg", "2", "was made with guidance weight 4, these images with 2"),
    ] {
        let (code, message) = fail(HOST, &[&flags[..], &at, &PROMPTS, &reference, &[flag, value]].concat());
        assert!(folded(&message).contains(reason), "{message}");
        assert_eq!(code, 2);
    }
}

#[test]
fn features_come_from_any_graph_and_time_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    let (run, out) = (folder.path().join("none"), folder.path().join("out"));
    let graph = repository().join("models/emoji-sd3/evaluator/classifier.onnx");
    let fixed = ["bench", "--run", run.to_str().unwrap(), "--out", out.to_str().unwrap(), "--steps", "2"];
    let own = [&fixed[..], &PROMPTS].concat();
    succeed(HOST, &own);
    let score = |r: &BenchReport| r.entries[0].inception_score.unwrap().mean;
    let (first, own_features) = (score(&report(&out)), report(&out).features);
    succeed(HOST, &[&own[..], &["--features", graph.to_str().unwrap()]].concat());
    let named = report(&out);
    assert!((score(&named) - first).abs() < 1e-9);
    assert_ne!(named.features, own_features);
    // Images of another size are scaled to the graph's.
    succeed(HOST, &[&own[..], &["--features", graph.to_str().unwrap(), "--size", "32"]].concat());
    assert!(score(&report(&out)) >= 1.0);
    let text = folder.path().join("x.onnx");
    fs::write(&text, "no graph").unwrap();
    let (code, message) = fail(HOST, &[&own[..], &["--features", text.to_str().unwrap()]].concat());
    assert!(message.contains("ONNX feature extractor"), "{message}");
    assert_eq!(code, 2);

    let table = succeed(HOST, &[&own[..], &["--skip-metrics", "--warmup", "0"]].concat());
    assert!(!table.contains("FID") && table.contains("s/image"), "{table}");
    let timed = report(&out);
    assert_eq!((timed.reference, timed.entries[0].latency.warm_up), (None, 0));
    assert!(!run.exists());
}
