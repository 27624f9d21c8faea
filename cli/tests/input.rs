//! Wrong input: one clear message, exit code 2, nothing left behind.

mod common;

use std::fs;
use std::path::Path;

use common::{Call, taq_in};

fn run(folder: &Path, manifest: &str) -> Call {
    fs::write(folder.join("p.toml"), manifest).unwrap();
    taq_in(folder, &["run", "p.toml"])
}

#[track_caller]
fn untouched(folder: &Path) {
    let found: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(found.iter().all(|f| f == "p.toml"), "left behind: {found:?}");
}

#[test]
fn an_unknown_manifest_field_is_named_with_its_place_and_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "output = \"out\"\n[calibrate]\nnum_image = 2\n")
        .exits(2)
        .says("p.toml")
        .says("num_image")
        .says("line 3")
        .says("did you mean `num_images`?");
    run(dir.path(), "output = \"out\"\n[calibrat]\n").exits(2).says("did you mean `calibrate`?");
    untouched(dir.path());
}

#[test]
fn plugin_names_and_settings_are_checked_before_the_first_stage() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = |round: &str| format!("output = \"out\"\n[calibrate]\n[round]\nrounder = {round}\n");
    run(dir.path(), &manifest("{ name = \"adaruond\" }")).exits(2).says("did you mean `adaround`?");
    run(dir.path(), &manifest("{ name = \"nearest\", no_such = 1 }")).exits(2).says("no_such");
    run(dir.path(), "output = \"out\"\nsampler = { name = \"eular\" }\n[calibrate]\n")
        .exits(2)
        .says("`euler`");
    untouched(dir.path());
}

#[test]
fn a_manifest_that_cannot_be_read_or_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    taq_in(dir.path(), &["run", "none.toml"]).exits(2).says("none.toml").says("taq::io");
    run(dir.path(), "output = ").exits(2).says("taq::malformed");
    run(dir.path(), "output = \"out\"\n").exits(2).says("it has no stage");
    untouched(dir.path());
}

#[test]
fn stages_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.toml"), "output = \"out\"\n[calibrate]\n").unwrap();
    taq_in(dir.path(), &["run", "p.toml", "--stages", "calibrat"]).exits(2).says("did you mean `calibrate`?");
    taq_in(dir.path(), &["run", "p.toml", "--stages", "round"]).exits(2).says("no table [round]");
    untouched(dir.path());
}

#[test]
fn a_stage_without_its_input_says_what_to_run_first() {
    let dir = tempfile::tempdir().unwrap();
    for stage in ["observe", "decide", "round", "generate"] {
        taq_in(dir.path(), &[stage, "--run", "none"])
            .exits(2)
            .says("taq::stage_missing")
            .says("run `taq calibrate` on this folder first");
    }
    untouched(dir.path());
}

#[test]
fn flags_name_plugins_too() {
    let dir = tempfile::tempdir().unwrap();
    taq_in(dir.path(), &["round", "--rounder", "adaruond"]).exits(2).says("did you mean `adaround`?");
    taq_in(dir.path(), &["observe", "--observer", "nope"]).exits(2).says("there is no observer named `nope`");
    taq_in(dir.path(), &["round", "--rounder", "nearest", "--iters", "5"])
        .exits(2)
        .says("no setting `iters`");
    taq_in(dir.path(), &["calibrate", "--sampler", "eular"]).exits(2).says("did you mean `euler`?");
    untouched(dir.path());
}

#[test]
fn a_model_that_is_not_there_leaves_no_run_folder() {
    let dir = tempfile::tempdir().unwrap();
    taq_in(dir.path(), &["calibrate", "--model", "./no/such/model"]).exits(2).says("no/such/model");
    untouched(dir.path());
}
