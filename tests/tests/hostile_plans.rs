//! Modules whose answer is well-formed and wrong: the plan is checked before it is used, one message says what is
//! wrong, and nothing is written.

use std::fs;
use std::path::Path;

use taq_core::{LayerSpec, PolicyRequest, Role, Stream, Timestep};
use taq_tests::taq::{command, fail, folded, succeed};
use taq_tests::wasm::answering;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn request() -> PolicyRequest {
    let layer = |id: &str, role| LayerSpec {
        id: id.into(),
        block: "mm0".into(),
        stream: Stream::Image,
        role,
        in_features: 8,
        out_features: 8,
        post_gelu: role == Role::Fc2,
    };
    let timesteps = vec![Timestep { step: 0, sigma: 1.0 }, Timestep { step: 1, sigma: 0.5 }];
    let request = PolicyRequest::new("toy", vec![layer("a", Role::Q), layer("b", Role::Fc2)], timesteps);
    PolicyRequest { weight_bits: vec![4, 8], activation_bits: vec![4, 6, 8], ..request }
}

const GOOD: [&str; 2] = [
    r#"{"id":"a","weight_bits":4,"activation_bits":[6,8]}"#,
    r#"{"id":"b","weight_bits":8,"activation_bits":[8,8],"shift":true}"#,
];

fn plan(layers: &[&str]) -> String {
    format!(r#"{{"format":"taq.policy_plan.v1","layers":[{}]}}"#, layers.join(","))
}

/// Writes the module and the request; returns their paths.
fn files(folder: &Path, answer: &str) -> (String, String) {
    let (path, request_path) = (folder.join("toy.wasm"), folder.join("request.json"));
    fs::write(&path, answering(answer)).unwrap();
    fs::write(&request_path, serde_json::to_vec(&request()).unwrap()).unwrap();
    (path.to_str().unwrap().to_owned(), request_path.to_str().unwrap().to_owned())
}

#[track_caller]
fn refused(answer: &str, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (module, request) = files(folder.path(), answer);
    let output = command(HOST, &["policy", "run", &module, "--request", &request]).output().unwrap();
    let message = folded(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains(expected), "expected “{expected}” in:\n{message}");
    assert!(output.stdout.is_empty(), "nothing is printed of a plan that is refused");
    assert!(!message.contains("panicked"), "{message}");
    // The same host still runs a good one.
    let (module, request) = files(folder.path(), &plan(&GOOD));
    let good = succeed(HOST, &["policy", "run", &module, "--request", &request]);
    assert!(good.contains("\"weight_bits\": 8"), "{good}");
}

#[test]
fn plans_that_are_wrong_are_named() {
    let [a, b] = GOOD;
    refused(&plan(&[a]), "it has 1 layers, the request 2");
    refused(&plan(&[a, b, b]), "it has 3 layers, the request 2");
    refused(&plan(&[]), "it has 0 layers, the request 2");
    refused(&plan(&[b, a]), "expected layer a in this place, found b");
    refused(&plan(&[a, a]), "expected layer b in this place, found a");
    refused(&plan(&[a, &b.replace("\"b\"", "\"mm9.q\"")]), "expected layer b in this place, found mm9.q");
    refused(&plan(&[&a.replace(":4", ":3"), b]), "a: weight_bits is 3, allowed are [4, 8]");
    refused(&plan(&[&a.replace("[6,8]", "[3,8]"), b]), "a: activation_bits has 3, allowed are [4, 6, 8]");
    refused(&plan(&[&a.replace("[6,8]", "[8]"), b]), "a: activation_bits has 1 entries for 2 timesteps");
    refused(&plan(&[&a.replace("[6,8]", "[8,8,8]"), b]), "a: activation_bits has 3 entries for 2 timesteps");
    refused(&plan(&[&a.replace(":4", ":0"), b]), "a: weight_bits is 0, allowed are [4, 8]");
    refused(&plan(&[&a.replace('}', ",\"shift\":true}"), b]), "a: shift is for post-GELU layers");
    refused(&plan(&GOOD).replace("plan.v1", "plan.v2"), "format is `taq.policy_plan.v2`, expected");
}

#[test]
fn numbers_that_are_none_are_named() {
    let [a, b] = GOOD;
    for (number, expected) in [
        ("NaN", "its plan is not one: expected value"),
        ("-1", "its plan is not one: invalid value: integer `-1`, expected u8"),
        ("260", "its plan is not one: invalid value: integer `260`, expected u8"),
        ("4.5", "its plan is not one: invalid type: floating point `4.5`, expected u8"),
        ("1e999", "its plan is not one: number out of range"),
        ("null", "its plan is not one: invalid type: null, expected u8"),
        ("\"4\"", "its plan is not one: invalid type: string \"4\", expected u8"),
    ] {
        refused(&plan(&[&a.replace(":4", &format!(":{number}")), b]), expected);
    }
    for alpha in ["1.5", "-1", "1e38"] {
        refused(
            &plan(&[&a.replace('}', &format!(",\"smoothquant_alpha\":{alpha}}}")), b]),
            "a: smoothquant_alpha is",
        );
    }
    for alpha in ["1e39", "-1e39", "1e999"] {
        let layer = a.replace('}', &format!(",\"smoothquant_alpha\":{alpha}}}"));
        refused(&plan(&[&layer, b]), "its plan is not one: number out of range");
    }
    refused(
        &plan(&[&a.replace('}', ",\"scale_source\":\"nan\"}"), b]),
        "its plan is not one: unknown variant `nan`",
    );
    refused(&plan(&[&a.replace('}', ",\"id\":\"a\"}"), b]), "its plan is not one: duplicate field `id`");
}

/// A name that clears the terminal, and one of a megabyte.
#[test]
fn names_in_a_message_are_harmless() {
    let [a, b] = GOOD;
    refused(&plan(&[a, &b.replace("\"b\"", r#""\u001b[2Jx""#)]), "found \\u{1b}[2Jx");
    let folder = tempfile::tempdir().unwrap();
    let long = b.replace("\"b\"", &format!("\"{}\"", "y".repeat(1_000_000)));
    let (module, request) = files(folder.path(), &plan(&[a, &long]));
    let (code, message) = fail(HOST, &["policy", "run", &module, "--request", &request]);
    assert_eq!(code, 2);
    assert!(message.len() < 5000, "{} bytes", message.len());
}

#[test]
fn decide_writes_nothing_of_a_plan_that_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let arguments = |stage, rest: &[&'static str]| -> Vec<String> {
        [stage]
            .iter()
            .chain(rest)
            .map(|a| (*a).to_owned())
            .chain(["--run".into(), run.display().to_string()])
            .collect()
    };
    for stage in [
        arguments("calibrate", &["--num-images", "1", "--num-steps", "2", "--no-images"]),
        arguments("observe", &[]),
    ] {
        succeed(HOST, &stage.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let (module, _) = files(folder.path(), &plan(&GOOD));
    let mut decide = arguments("decide", &["--policy"]);
    decide.insert(2, module);
    let (code, message) = fail(HOST, &decide.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 2, "{message}");
    assert!(folded(&message).contains("it has 2 layers, the request 69"), "{message}");
    assert!(!run.join("activations/quant_config.json").exists());
    succeed(HOST, &arguments("decide", &["--force"]).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(run.join("activations/quant_config.json").exists());
}
