//! Native plugins at work: what they answer is used, what cannot be is refused, and the run goes by the library's hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taq_core::artifacts::{Npz, RunFolder, read_document};
use taq_core::pipeline::WeightsConfig;
use taq_core::registry::{Kind, Registry};
use taq_core::{Cancel, Context, Error, Progress, RoundedBlock};
use taq_plugin::conformance::{
    Host, Problem, assert_observer_conforms, assert_policy_conforms, assert_rounder_conforms,
};
use taq_plugins as _;
use taq_tests::linked::Named;
use taq_tests::native;
use taq_tests::planted::{Linked, Planted};
use taq_tests::taq::{command, fail, folded, succeed};
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");
const SHAPE: [usize; 2] = [6, 16];

fn problem() -> Problem {
    Problem::new(5, SHAPE, Problem::grid(SHAPE, 4, false, SHAPE[1]), 24, 2)
}

/// The linked rounders, and those of some libraries.
fn registry(libraries: &[PathBuf]) -> Registry {
    let mut registry = Registry::linked().unwrap();
    for library in libraries {
        registry.load(library).unwrap();
    }
    registry
}

fn round(registry: &Registry, name: &str, settings: &Value) -> taq_core::Result<RoundedBlock> {
    let rounder = registry.rounder(name, settings)?;
    Planted::new(&problem(), &Host::default()).round(&*rounder, &Context::quiet(1))
}

#[test]
fn built_in_rounders_conform() {
    assert_rounder_conforms(&Linked::new("nearest", json!({})));
    assert_rounder_conforms(&Linked::new("gptq", json!({})));
    assert_rounder_conforms(&Linked::new("adaround", json!({ "iters": 60, "batch_size": 4 })));
    assert_rounder_conforms(&Linked::new("taq-dit", json!({ "iters": 60, "batch_size": 4 })));
}

/// All that are linked in, so that a new one is not forgotten.
fn linked(kind: Kind) -> Vec<&'static str> {
    let registry = Registry::linked().unwrap();
    registry.iter().filter(|(k, _)| *k == kind).map(|(_, plugin)| plugin.name).collect()
}

#[test]
fn built_in_observers_conform() {
    let all = linked(Kind::Observer);
    assert!(["avg-minmax", "minmax", "mse", "percentile"].iter().all(|name| all.contains(name)), "{all:?}");
    for name in all {
        assert_observer_conforms(&Named::new(name, json!({})));
    }
}

#[test]
fn built_in_policies_conform() {
    let all = linked(Kind::Policy);
    assert!(["baseline-a8", "budget", "multitier"].iter().all(|name| all.contains(name)), "{all:?}");
    for name in all {
        assert_policy_conforms(&Named::new(name, json!({})));
    }
}

#[test]
fn what_a_native_rounder_answers_is_what_a_linked_one_would() {
    let folder = tempfile::tempdir().unwrap();
    let libraries =
        [native::c(folder.path(), &[]), native::rust("taq_test_plugins"), native::rust("signround")];
    let registry = registry(&libraries);
    let nearest = round(&registry, "nearest", &json!({})).unwrap();
    assert_eq!(round(&registry, "plain", &json!({})).unwrap(), nearest);
    assert_eq!(round(&registry, "c-nearest", &json!({})).unwrap(), nearest);
    // One that learns by the block is better, and the host keeps the loss of every hundredth question.
    let learned = round(&registry, "sign-round", &json!({})).unwrap();
    let error = |block: &RoundedBlock| {
        let layers: Vec<_> = block
            .layers
            .iter()
            .map(|l| taq_plugin::RoundedLayer {
                weight_int: l.weight_int.clone(),
                scale: l.scale.clone(),
                zero_point: l.zero_point.clone(),
                input_scale: l.learned.as_ref().map(|l| l.scale.clone()),
            })
            .collect();
        problem().held_out_of(&layers)
    };
    assert!(error(&learned) < 0.9 * error(&nearest), "{} {}", error(&learned), error(&nearest));
    assert_eq!((learned.losses.len(), learned.layers[0].learned.is_none()), (3, true));
    // Step sizes of the inputs that a plugin learns take the plan's place.
    let descent = round(&registry, "descent", &json!({ "inputs": true })).unwrap();
    let scale = &descent.layers[0].learned.as_ref().unwrap().scale;
    let plan = &problem().layers[0].input_scale;
    assert!(scale.iter().zip(plan).all(|(a, b)| a != b && (a / b - 1.0).abs() < 0.03), "{scale:?} {plan:?}");
}

#[test]
fn answers_that_cannot_be_are_refused_and_the_host_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let c: &[(&str, &[&str])] = &[
        (
            "STATUS_77",
            &["rounder `c-nearest`: `round_layer` returned 77, expected 0 to 5: an unknown status"],
        ),
        ("LONG_ERROR", &["rounder `c-nearest`: xxxxxxxx", "…"]),
        ("WILD_ERROR", &["what it says of it cannot be read"]),
        ("NO_REASON", &["it does not say why"]),
        ("WRITES_NOTHING", &["layer `block.img.attn.q0`: it did not write scale[0] of 6"]),
        ("HALF_WRITTEN", &["weight_int[5] is -128, expected -8 to 7 on a grid of 4 bits; was it written?"]),
        ("SAYS_NAN", &["scale[0] is NaN, expected a finite number greater than 0"]),
        ("NEGATIVE_SCALE", &["scale[0] is -", "expected a finite number greater than 0"]),
        ("OUT_OF_RANGE", &["weight_int[7] is 100, expected -8 to 7 on a grid of 4 bits"]),
        ("WRITES_BEYOND", &["it wrote beyond the room of `weight_int`"]),
        ("WRITES_BEFORE", &["it wrote beyond the room of `scale`"]),
    ];
    for (switch, expected) in c {
        let library = native::c(folder.path(), &[switch]);
        let error = round(&registry(&[library]), "c-nearest", &json!({})).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.code(), "taq::native", "{switch}: {message}");
        assert!(
            expected.iter().all(|part| message.contains(part)) && message.len() < 1000,
            "{switch}: {message}"
        );
    }
    let registry = registry(&[native::rust("taq_test_plugins")]);
    let rust: &[(&str, &[&str])] = &[
        (
            "panics-in-create",
            &["rounder `panics-in-create` panicked in `create`", "no instance today", "rude.rs"],
        ),
        ("panics-in-round", &["panicked in `round_layer`", "cannot round block.img.attn.q0", "rude.rs"]),
        ("says-nan", &["scale[1] is NaN"]),
        ("too-few", &["the plugin returned 95 numbers of `weight_int`, expected 96"]),
        ("long-error", &["\\u{1b}[31mno\\u{1b}[31mno", "…"]),
        ("stops-unasked", &["`round_layer` stopped although nobody asked it to"]),
        ("wrong-rows", &["there is no row 24, of 24 to learn from"]),
        ("other-thread", &["this function is only for the thread that the call came on"]),
    ];
    for (name, expected) in rust {
        let error = round(&registry, name, &json!({})).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.code(), "taq::native", "{name}: {message}");
        assert!(
            expected.iter().all(|part| message.contains(part)) && message.len() < 1000,
            "{name}: {message}"
        );
    }
    // A panic where an instance ends is told, and nothing is lost.
    let nearest = round(&registry, "nearest", &json!({})).unwrap();
    assert_eq!(round(&registry, "panics-in-destroy", &json!({})).unwrap(), nearest);
    // Settings are the user's.
    let error = registry.rounder("descent", &json!({ "iters": 0 })).err().unwrap();
    assert_eq!(error.to_string(), "rounder `descent`: iters = 0, expected 1 or more");
    let error = registry.rounder("descent", &json!({ "iter": 5 })).err().unwrap();
    assert!(error.to_string().contains("unknown field `iter`, expected `iters` or `inputs`"), "{error}");
    assert!(matches!(registry.rounder("plain", &json!([1])), Err(Error::Settings { .. })));
}

#[derive(Default)]
struct Units(Mutex<Vec<u64>>);

impl Progress for Units {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, units: u64, _: &str) {
        self.0.lock().unwrap().push(units);
    }
    fn end(&self) {}
}

#[test]
fn progress_adds_up_and_cancelling_ends_a_call() {
    let registry = registry(&[native::rust("taq_test_plugins"), native::rust("signround")]);
    let problem = problem();
    for name in ["plain", "descent", "sign-round"] {
        let rounder = registry.rounder(name, &Value::Null).unwrap();
        let units = Arc::new(Units::default());
        let cx = Context { seed: 1, progress: units.clone(), cancel: Cancel::default() };
        Planted::new(&problem, &Host::default()).round(&*rounder, &cx).unwrap();
        let told = units.0.lock().unwrap().clone();
        assert_eq!(told.iter().sum::<u64>(), rounder.iterations(), "{name}: {told:?}");
        assert!(name == "plain" || told.len() > 10, "{name}: {told:?}");
        cx.cancel.cancel();
        let stopped = Planted::new(&problem, &Host::default()).round(&*rounder, &cx);
        assert!(matches!(stopped, Err(Error::Cancelled)), "{name}");
    }
    // An error of the engine comes back as what it is, whatever the plugin makes of it.
    let rounder = registry.rounder("sign-round", &Value::Null).unwrap();
    let failed = Planted::new(&problem, &Host::failing()).round(&*rounder, &Context::quiet(1)).unwrap_err();
    assert!(matches!(failed, Error::Unsupported { .. }), "{failed}");
}

/// A small run with a plan, made once.
fn planned() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        succeed(HOST, &["calibrate", "--num-images", "2", "--num-steps", "3", "--calib-dir", root]);
        succeed(HOST, &["observe", "--run", root]);
        succeed(HOST, &["decide", "--run", root]);
        folder
    });
    run.path()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A copy of the small run.
fn run() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    copy(planned(), &root);
    let root = root.to_str().unwrap().to_owned();
    (folder, root)
}

const SMALL: [&str; 6] = ["--blocks", "mm0", "--rows", "2", "--held-out-rows", "2"];

fn round_with<'a>(run: &'a str, library: &'a str, rounder: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["round", "--run", run, "--plugin", library, "--rounder", rounder];
    arguments.extend(SMALL);
    arguments
}

#[test]
fn stages_run_with_native_plugins_and_go_by_the_library_s_hash() {
    let (folder, root) = run();
    let good = native::c(folder.path(), &[]);
    let good = good.to_str().unwrap();
    // The observer finds what `minmax` finds.
    let observe = |observer: &'static str| ["observe", "--run", &root, "--force", "--observer", observer];
    let observed = |arguments: &[&str]| {
        succeed(HOST, arguments);
        let paths = RunFolder::open(Path::new(&root)).unwrap();
        Npz::open(&paths.step_stats(1)).unwrap().vec::<f32>("mm0_img_attn_q_proj__avg_max", &[192]).unwrap()
    };
    let ours = observed(&[&observe("c-minmax")[..], &["--plugin", good]].concat());
    assert_eq!(ours, observed(&observe("minmax")));
    // The policy is named in the plan, and its settings are checked.
    let rust = native::rust("taq_test_plugins");
    let rust = rust.to_str().unwrap();
    let decide =
        ["decide", "--run", &root, "--force", "--plugin", rust, "--policy", "eight-late", "--policy-config"];
    let (code, said) = fail(HOST, &[&decide[..], &["{\"early\": 1}"]].concat());
    assert!(code == 2 && said.contains("policy `eight-late`: early = 1, expected 2 to 8"), "{said}");
    succeed(HOST, &[&decide[..], &["{\"early\": 5}"]].concat());
    let plan: Value =
        serde_json::from_slice(&fs::read(format!("{root}/activations/quant_config.json")).unwrap()).unwrap();
    assert_eq!(
        (plan["policy"].as_str(), &plan["per_timestep"]["0"]["mm0.img.attn.q_proj"]["bits"]),
        (Some("eight-late"), &json!(5))
    );
    // The rounder: once, and then it is there already; with another library of the same name, it is refused.
    succeed(HOST, &round_with(&root, good, "c-nearest"));
    let paths = RunFolder::open(Path::new(&root)).unwrap();
    let config: WeightsConfig = read_document(&paths.weights_config()).unwrap();
    let origin = config.rounder["origin"].as_str().unwrap();
    assert!(origin.starts_with("in-c 1.2.3, blake3 ") && origin.len() > 80, "{origin}");
    assert_eq!(config.block_metrics[0].final_loss, config.block_metrics[0].nearest_loss);
    drop(paths);
    assert!(succeed(HOST, &round_with(&root, good, "in-c::c-nearest")).contains("reused"));
    let other = native::c(folder.path(), &["SAYS_NAN"]);
    let other = other.to_str().unwrap();
    let (code, said) = fail(HOST, &round_with(&root, other, "c-nearest"));
    assert!(code == 2 && said.contains("taq::stale") && said.contains("rounder.origin"), "{said}");
    // Forced, it is run, and what it answers is refused: exit code 2, no weights.
    let (code, said) = fail(HOST, &[&round_with(&root, other, "c-nearest")[..], &["--force"]].concat());
    assert!(code == 2 && folded(&said).contains("scale[0] is NaN") && said.contains("taq::native"), "{said}");
    assert!(!Path::new(&format!("{root}/quantized_weights/weights/mm0.npz")).exists());
}

#[test]
fn a_manifest_names_its_libraries() {
    let (folder, root) = run();
    native::c(folder.path(), &[]);
    let file = format!("libgood{}", std::env::consts::DLL_SUFFIX);
    let manifest = |library: &str| {
        let path = folder.path().join("pipeline.toml");
        let text = format!(
            "output = \"{root}\"\nplugins = [\"{library}\"]\n[round]\nrounder = {{ name = \"c-nearest\" }}\n\
             blocks = [\"mm0\"]\nrows = 2\nheld_out_rows = 2\n"
        );
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // Relative to the manifest.
    succeed(HOST, &["run", &manifest(&file)]);
    assert!(Path::new(&format!("{root}/quantized_weights/weights/mm0.npz")).exists());
    let (code, said) = fail(HOST, &["run", &manifest("missing.so")]);
    assert!(code == 2 && said.contains("missing.so"), "{said}");
}

#[test]
fn a_call_that_never_returns_ends_with_ctrl_c() {
    let (folder, root) = run();
    let c = native::c(folder.path(), &["STUCK"]);
    for (library, rounder) in [(native::rust("taq_test_plugins"), "stuck"), (c, "c-nearest")] {
        let library = library.to_str().unwrap().to_owned();
        let arguments = [&round_with(&root, &library, rounder)[..], &["--force"]].concat();
        let mut child = command(HOST, &arguments).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(5));
        assert!(child.try_wait().unwrap().is_none(), "it should be stuck");
        let interrupt = || {
            let id = child.id().to_string();
            assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        };
        interrupt();
        std::thread::sleep(Duration::from_millis(500));
        interrupt();
        let asked = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
