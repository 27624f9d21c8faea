//! `taq-dit`'s last step, over all blocks: it is done once, and a run that was killed in it goes on.

use std::path::Path;

use taq_tests::taq::succeed;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn tuned_weights_take_their_place_whenever_the_run_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let taq = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').chain(["--run", run.to_str().unwrap()]).collect();
        succeed(HOST, &arguments)
    };
    let weights = run.join("quantized_weights");
    let config =
        || -> serde_json::Value { serde_json::from_slice(&read(&weights.join("config.json"))).unwrap() };
    let settings = folder.path().join("settings.json");
    let round = |end_to_end: usize, extra: &str| {
        let text = format!(r#"{{"iters": 4, "polish": 2, "end_to_end": {end_to_end}, "start": "nearest"}}"#);
        std::fs::write(&settings, text).unwrap();
        let settings = settings.display();
        let what = "round --rounder taq-dit --batch-size 4 --rows 8 --held-out-rows 4";
        taq(&format!("{what} --rounder-config {settings}{extra}"))
    };
    taq("calibrate --num-images 3 --num-steps 4");
    taq("observe");
    taq("decide");
    round(0, "");
    assert!(config().get("end_to_end").is_none());
    let before = read(&weights.join("weights/mm0.npz"));

    round(30, " --force");
    let metrics = &config()["end_to_end"];
    let number = |name: &str| metrics[name].as_f64().unwrap();
    assert!(number("final_loss") < number("before_loss"), "{metrics}");
    assert_eq!(metrics["loss_history_stride100"].as_array().unwrap().len(), 1);
    let files = ["mm0", "mm3", "mm5"].map(|block| weights.join(format!("weights/{block}.npz")));
    let tuned: Vec<Vec<u8>> = files.iter().map(|f| read(f)).collect();
    assert_ne!(before, tuned[0]);

    // Killed with the record written and two of the files not yet renamed.
    std::fs::remove_file(weights.join("config.json")).unwrap();
    for file in &files[..2] {
        std::fs::rename(file, file.with_extension("tuned.npz")).unwrap();
    }
    std::fs::write(&files[0], &before).unwrap();
    std::fs::copy(files[1].with_extension("tuned.npz"), &files[1]).unwrap();
    round(30, "");
    for (file, tuned) in files.iter().zip(&tuned) {
        assert!(read(file) == *tuned, "{}", file.display());
        assert!(!file.with_extension("tuned.npz").exists());
    }
    assert!(config()["end_to_end"].is_object());

    // Killed before the record: half a file is no harm.
    std::fs::remove_file(weights.join("config.json")).unwrap();
    std::fs::remove_file(weights.join("end_to_end.json")).unwrap();
    std::fs::write(files[0].with_extension("tuned.npz"), b"half").unwrap();
    round(30, "");
    assert!(!files[0].with_extension("tuned.npz").exists());
    assert!(config()["end_to_end"].is_object());
}
