//! `taq plugins` and `taq schema`.

mod common;

use common::{command, taq, taq_in};
use serde_json::Value;

#[test]
fn json_lists_every_plugin_with_a_schema() {
    let call = taq(&["plugins", "--json"]).exits(0);
    let all: Vec<Value> = serde_json::from_str(&call.stdout).unwrap();
    assert!(!all.is_empty());
    for plugin in &all {
        for key in ["kind", "name", "summary", "origin"] {
            assert!(plugin[key].as_str().is_some_and(|s| !s.is_empty()), "{key} of {plugin}");
        }
        assert!(plugin["settings"].is_object(), "{plugin}");
    }
    let key = |p: &Value| (p["kind"].to_string(), p["name"].to_string());
    for kind in ["model", "sampler", "observer", "policy", "rounder"] {
        let of_kind: Vec<&Value> = all.iter().filter(|p| p["kind"] == kind).collect();
        assert!(!of_kind.is_empty(), "no built-in {kind}");
        assert!(of_kind.is_sorted_by_key(|p| key(p)), "{kind}s are not sorted");
    }
}

#[test]
fn a_kind_filters_the_list() {
    let call = taq(&["plugins", "sampler"]).exits(0);
    let rows: Vec<&str> = call.stdout.lines().skip(1).collect();
    assert!(!rows.is_empty() && rows.iter().all(|r| r.starts_with("sampler ")), "{}", call.stdout);
    assert!(rows.iter().any(|r| r.contains(" euler ")), "{}", call.stdout);
}

#[test]
fn show_describes_every_plugin() {
    let all: Vec<Value> = serde_json::from_str(&taq(&["plugins", "--json"]).exits(0).stdout).unwrap();
    for plugin in &all {
        let name = format!("{}/{}", plugin["kind"].as_str().unwrap(), plugin["name"].as_str().unwrap());
        let shown = taq(&["plugins", "show", &name]).exits(0).stdout;
        assert!(shown.contains(plugin["summary"].as_str().unwrap()), "{shown}");
        for setting in plugin["settings"]["properties"].as_object().into_iter().flat_map(|p| p.keys()) {
            assert!(
                shown.lines().any(|l| l.starts_with(&format!("{setting} "))),
                "{setting} of {name}:\n{shown}"
            );
        }
        let schema: Value =
            serde_json::from_str(&taq(&["plugins", "show", &name, "--json"]).exits(0).stdout).unwrap();
        assert_eq!(schema, plugin["settings"]);
    }
}

#[test]
fn an_unknown_plugin_gets_a_suggestion() {
    taq(&["plugins", "show", "adaruond"])
        .exits(2)
        .says("did you mean `adaround`")
        .says("taq::unknown_plugin");
    taq(&["plugins", "rounderr"]).exits(2).says("rounder");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::io::Read;
    let mut child = command(&["plugins", "--json"], &std::env::temp_dir()).spawn().unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[cfg(target_os = "linux")]
#[test]
fn stdout_that_is_full_is_an_error() {
    use std::process::Stdio;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        command(&["plugins", "--json"], &std::env::temp_dir()).stdout(Stdio::from(full)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout"));
}

#[test]
fn schemas_are_listed_printed_and_written() {
    let names = taq(&["schema"]).exits(0).stdout;
    assert!(names.lines().any(|n| n == "pipeline"), "{names}");
    let printed: Value = serde_json::from_str(&taq(&["schema", "pipeline"]).exits(0).stdout).unwrap();
    assert!(printed["properties"]["calibrate"].is_object(), "{printed}");
    let folder = tempfile::tempdir().unwrap();
    taq(&["schema", "--out", folder.path().to_str().unwrap()]).exits(0);
    for name in names.lines() {
        let text = std::fs::read_to_string(folder.path().join(format!("{name}.schema.json"))).unwrap();
        let schema: Value = serde_json::from_str(&text).unwrap();
        assert!(schema["$schema"].is_string(), "{name}");
    }
    taq(&["schema", "pipelin"]).exits(2).says("did you mean `pipeline`?");
}

#[test]
fn new_writes_a_project_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, choice, file) in [
        ("rust", "--kind policy --lang rust", "src/lib.rs"),
        ("c", "--kind policy --lang c", "policy.c"),
        ("assemblyscript", "--kind policy --lang assemblyscript", "assembly/index.ts"),
        ("wat", "--kind policy --lang wat", "policy.wat"),
        ("rounder-rust", "--kind rounder", "src/lib.rs"),
        ("rounder-c", "--kind rounder --lang c", "taq_plugin.h"),
        ("rounder-zig", "--kind rounder --lang zig", "taq_plugin.h"),
        ("observer-rust", "--kind observer", "src/lib.rs"),
        ("observer-c", "--kind observer --lang c", "observer.c"),
        ("host", "--kind host", "src/main.rs"),
    ] {
        let arguments: Vec<&str> = ["plugin", "new", name].into_iter().chain(choice.split(' ')).collect();
        let said = taq_in(folder.path(), &arguments).exits(0).stdout;
        assert!(said.contains(&format!("cd {name} && ")), "{said}");
        assert!(folder.path().join(name).join(file).is_file());
        assert!(folder.path().join(name).join("pipeline.toml").is_file());
        taq_in(folder.path(), &arguments).exits(2).says("is not empty");
    }
    let host_in_c = ["plugin", "new", "x", "--kind", "host", "--lang", "c"];
    taq_in(folder.path(), &host_in_c)
        .exits(2)
        .says("no template for --kind host --lang c")
        .says("rounder in rust, c, zig");
    let help = taq(&["plugin", "new", "--help"]).exits(0).stdout;
    assert!(help.contains("--kind rounder    --lang rust, c, zig\n"), "{help}");
    taq_in(folder.path(), &["plugin", "new", "8", "--kind", "policy"]).exits(2).says("begin with a letter");
    assert!(!folder.path().join("x").exists() && !folder.path().join("8").exists());
}
