//! Bad input: one clear error that names the thing, exit code 2, no partial output.

use std::fs;
use std::path::{Path, PathBuf};

use taq_tests::paths::emoji_sd3;
use taq_tests::taq::{fail, folded, succeed};
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// Runs, and expects exit code 2 with all of these on standard error and no panic.
fn refused(arguments: &[&str], expected: &[&str]) {
    let (code, stderr) = fail(HOST, arguments);
    let message = folded(&stderr);
    assert_eq!(code, 2, "taq {arguments:?}: {stderr}");
    for part in expected {
        assert!(message.contains(part), "taq {arguments:?} should say “{part}”:\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

/// A copy of the emoji model with its transformer's weights changed.
fn model_with(folder: &TempDir, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> String {
    let model = folder.path().join("model");
    copy(&emoji_sd3(), &model);
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    match change(fs::read(&weights).unwrap()) {
        Some(bytes) => fs::write(&weights, bytes).unwrap(),
        None => fs::remove_file(&weights).unwrap(),
    }
    model.to_str().unwrap().to_owned()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Replaces text in the header of a safetensors file by text of the same length.
fn rename_in_header(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("the name is in the header");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

fn calibrate<'a>(model: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["calibrate", "--num-images", "1", "--num-steps", "1", "--model", model, "--calib-dir", output]
}

#[test]
fn missing_weights() {
    let folder = folder();
    let model = model_with(&folder, |_| None);
    let output = path(&folder, "run");
    refused(&calibrate(&model, &output), &["transformer", "safetensors"]);
    assert!(!Path::new(&output).join("manifest.json").exists());
}

#[test]
fn truncated_weights() {
    let folder = folder();
    let model = model_with(&folder, |bytes| Some(bytes[..bytes.len() / 2].to_vec()));
    refused(
        &calibrate(&model, &path(&folder, "run")),
        &["diffusion_pytorch_model.safetensors", "is not a valid"],
    );
}

#[test]
fn a_wrong_key_is_both_missing_and_unexpected() {
    let folder = folder();
    let (from, to) = ("transformer_blocks.3.attn.to_q.weight", "transformer_blocks.3.attn.to_z.weight");
    let model = model_with(&folder, |bytes| Some(rename_in_header(bytes, from, to)));
    let expected = [format!("missing {from}"), format!("unexpected {to}")];
    refused(&calibrate(&model, &path(&folder, "run")), &[&expected[0], &expected[1]]);
}

#[test]
fn a_wrong_shape() {
    let folder = folder();
    let model = model_with(&folder, |bytes| Some(rename_in_header(bytes, "[768,192]", "[192,768]")));
    refused(
        &calibrate(&model, &path(&folder, "run")),
        &["wrong shape", "expected [768, 192], found [192, 768]"],
    );
}

#[test]
fn nan_weights() {
    let folder = folder();
    let model = model_with(&folder, |mut bytes| {
        // Half-precision NaN in the last element of the file.
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&0x7e00u16.to_le_bytes());
        Some(bytes)
    });
    refused(&calibrate(&model, &path(&folder, "run")), &["not finite", "1 NaN or infinite"]);
}

#[test]
fn no_such_model() {
    let folder = folder();
    refused(&calibrate("./no/such/model", &path(&folder, "run")), &["no/such/model"]);
}

#[test]
fn empty_and_broken_prompt_files() {
    let folder = folder();
    let output = path(&folder, "run");
    let empty = write(&folder, "empty.txt", "\n\n");
    refused(&["calibrate", "--prompts", &empty, "--calib-dir", &output], &["empty.txt", "it has no prompt"]);
    let broken = write(&folder, "broken.csv", b"prompt\ncat \xff\xfe\n");
    refused(
        &["calibrate", "--prompts", &broken, "--calib-dir", &output],
        &["broken.csv", "line 2 is not UTF-8"],
    );
    refused(&["calibrate", "--prompts", "gone.txt", "--calib-dir", &output], &["cannot read", "gone.txt"]);
}

#[test]
fn zero_steps() {
    let folder = folder();
    refused(&["calibrate", "--num-steps", "0", "--calib-dir", &path(&folder, "run")], &["num-steps", "0"]);
}

#[test]
fn unknown_plugins_and_fields() {
    let folder = folder();
    let manifest = |name: &str, text: &str| write(&folder, name, format!("output = \"unused\"\n{text}"));
    let output = path(&folder, "run");
    let run = |manifest: &str, expected: &[&str]| refused(&["run", manifest, "--output", &output], expected);
    let typo = manifest("typo.toml", "[round]\nrounder = { name = \"adaroud\" }\n");
    run(&typo, &["there is no rounder named `adaroud`", "did you mean `adaround`?"]);
    let field = manifest("field.toml", "[calibrate]\nnum_imags = 3\n");
    run(&field, &["field.toml", "unknown field `num_imags`"]);
    let setting = manifest("setting.toml", "[round]\nrounder = { name = \"adaround\", itres = 3 }\n");
    run(&setting, &["rounder `adaround`", "unknown field `itres`"]);
    assert!(!Path::new(&output).exists());
}

#[test]
fn stages_name_what_they_need() {
    let folder = folder();
    let run = path(&folder, "run");
    refused(&["observe", "--run", &run], &["observe needs calibration samples", "taq calibrate"]);
    refused(&["decide", "--run", &run], &["decide needs statistics", "taq calibrate"]);
    succeed(HOST, &["calibrate", "--num-images", "1", "--num-steps", "1", "--calib-dir", &run]);
    refused(&["decide", "--run", &run], &["decide needs", "taq observe"]);
    refused(&["round", "--run", &run], &["round needs", "taq decide"]);
}

#[test]
fn a_file_in_place_of_the_run_folder() {
    let folder = folder();
    let file = write(&folder, "file", "x");
    refused(&["calibrate", "--num-images", "1", "--calib-dir", &file], &["file", "not a folder"]);
}

/// A calibration folder that another model made, and one made with other settings.
#[test]
fn a_folder_of_another_run() {
    let folder = folder();
    let run = path(&folder, "run");
    succeed(HOST, &["calibrate", "--num-images", "1", "--num-steps", "1", "--calib-dir", &run]);
    let other = ["calibrate", "--num-images", "1", "--num-steps", "2", "--calib-dir", &run];
    refused(&other, &["results of another run", "num_steps", "--force"]);
    let tiny: PathBuf = taq_tests::paths::golden().join("tiny-sd3");
    let tiny = tiny.to_str().unwrap();
    refused(&["observe", "--run", &run, "--model", tiny], &["another"]);
    // The old results are all there still.
    assert!(Path::new(&run).join("samples/0000_001.npz").exists());
}

/// No file may grow beyond 16 KiB, which a sample does: to the program it is what a full disk is.
#[cfg(unix)]
#[test]
fn a_full_disk() {
    let folder = folder();
    let run = path(&folder, "run");
    let arguments = ["calibrate", "--num-images", "1", "--num-steps", "2", "--calib-dir", &run];
    let limited = ["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\"", HOST];
    let (code, stderr) = fail("sh", &[&limited[..], &arguments].concat());
    assert_eq!(code, 2, "{stderr}");
    for part in ["cannot write", &run, "free some space"] {
        assert!(folded(&stderr).contains(part), "{stderr}");
    }
    // Nothing half-written is left, and with space the same command goes on.
    assert!(
        taq_tests::taq::artifacts(Path::new(&run)).iter().all(|file| file.extension().unwrap() == "json")
    );
    succeed(HOST, &arguments);
    assert!(Path::new(&run).join("samples/0000_002.npz").exists());
}

/// To the administrator no folder is read-only by its permissions, but `/sys` is.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder() {
    refused(&["calibrate", "--num-images", "1", "--calib-dir", "/sys/taq"], &["/sys/taq", "may write to"]);
}
