//! The WASM policies that come with taq, and those of the SDK's templates: whole, and what the ABI says.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use taq_core::wasm::{WasmPolicy, limits};
use taq_core::{PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, Role, testing};
use taq_tests::paths;
use wasmparser::{Parser, Payload, TypeRef};

/// Every module of the repository: built-in policies, and one for each template.
fn modules() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["policies", "tests/fixtures/policies"] {
        let mut folders = vec![paths::repository().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.extension() {
                    _ if path.is_dir() => folders.push(path),
                    Some(extension) if extension == "wasm" => found.push(path),
                    _ => {}
                }
            }
        }
    }
    found.sort();
    found
}

fn template(language: &str) -> PathBuf {
    paths::repository().join(format!("tests/fixtures/policies/late-8-{language}.wasm"))
}

#[test]
fn modules_are_those_of_the_list() {
    let folder = paths::repository().join("policies");
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let (head, sums) = sums.split_once('\n').unwrap();
    assert!(head.starts_with("# rustc "), "the first line of SHA256SUMS names the compiler, not `{head}`");
    let listed: BTreeMap<PathBuf, &str> = sums
        .lines()
        .map(|line| line.split_once("  ").unwrap_or_else(|| panic!("`{line}` is no line of sha256sum")))
        .map(|(sum, path)| (folder.join(path), sum))
        .collect();

    let found: Vec<PathBuf> = modules().into_iter().filter(|path| path.starts_with(&folder)).collect();
    assert_eq!(found, listed.keys().cloned().collect::<Vec<_>>(), "run policies/build.sh");
    for (path, sum) in listed {
        let digest = Sha256::digest(fs::read(&path).unwrap());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, sum, "{} is not what SHA256SUMS says; run policies/build.sh", path.display());
    }
}

#[test]
fn every_policy_crate_is_built() {
    for entry in fs::read_dir(paths::repository().join("policies")).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("Cargo.toml").exists() {
            let module = folder.join(folder.file_name().unwrap()).with_extension("wasm");
            assert!(module.exists(), "{} is missing; run policies/build.sh", module.display());
        }
    }
}

#[test]
fn imports_and_exports_are_those_of_the_abi() {
    let modules = modules();
    assert!(modules.len() >= 4, "found only {modules:?}");
    for path in modules {
        let bytes = fs::read(&path).unwrap();
        let mut exports = Vec::new();
        for payload in Parser::new(0).parse_all(&bytes) {
            match payload.unwrap() {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import.unwrap();
                        assert_eq!(import.module, "taq", "{}", path.display());
                        let known = ["read_request", "write_response", "log"].contains(&import.name);
                        assert!(known, "{} imports taq.{}", path.display(), import.name);
                        assert!(matches!(import.ty, TypeRef::Func(_)));
                    }
                }
                Payload::ExportSection(section) => {
                    exports.extend(section.into_iter().map(|export| export.unwrap().name));
                }
                // Names of functions, producers, debug information: nothing that a policy needs.
                Payload::CustomSection(section) => {
                    assert!(section.name() != "name", "{} is not stripped", path.display());
                }
                _ => {}
            }
        }
        for name in ["memory", "taq_policy_abi_v1", "describe", "assign"] {
            assert!(exports.contains(&name), "{} does not export `{name}`", path.display());
        }
    }
}

#[test]
fn no_path_of_a_machine_is_inside() {
    for path in modules() {
        let bytes = fs::read(&path).unwrap();
        for private in ["/home/", "/root/", "/Users/", "/tmp/", ".cargo", ".rustup"] {
            let found = bytes.windows(private.len()).any(|window| window == private.as_bytes());
            assert!(!found, "{} has `{private}` inside", path.display());
        }
    }
}

/// What the ABI's page shows are documents of the types in the code, and its limits are those of the host.
#[test]
fn the_abi_page_is_right() {
    let page = fs::read_to_string(paths::repository().join("docs/abi/policy-v1.md")).unwrap();
    let mut kinds = Vec::new();
    for block in page.split("```json\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in:\n{text}"));
        let format = value["format"].as_str().unwrap_or("error").to_owned();
        let read = match format.as_str() {
            "taq.policy_info.v1" => serde_json::from_str::<PolicyInfo>(text).map(drop),
            "taq.policy_plan.v1" => serde_json::from_str::<PolicyPlan>(text).map(drop),
            "error" => serde_json::from_str::<PolicyError>(text).map(drop),
            "taq.policy_request.v1" => serde_json::from_str::<PolicyRequest>(text).map(|request| {
                request.measured().unwrap_or_else(|e| panic!("{e}"));
                let plan = WasmPolicy::load(&template("rust"), &Value::Null).unwrap().run(&request).unwrap();
                assert_eq!(plan.plan.layers.len(), request.layers.len());
            }),
            other => panic!("what is a `{other}`?"),
        };
        read.unwrap_or_else(|e| panic!("{e} in:\n{text}"));
        kinds.push(format);
    }
    assert_eq!(kinds, ["taq.policy_info.v1", "taq.policy_request.v1", "taq.policy_plan.v1", "error"]);

    let spaced = |n: u64| {
        let groups: Vec<String> =
            n.to_string().as_bytes().rchunks(3).rev().map(|g| String::from_utf8_lossy(g).into()).collect();
        groups.join(" ")
    };
    for limit in [
        format!(
            "| file | {} MiB, a component {} MiB; {} functions",
            limits::MODULE_BYTES >> 20,
            limits::COMPONENT_BYTES >> 20,
            spaced(limits::FUNCTIONS.into())
        ),
        format!(
            "| function | {} parameters, {} results; variables × blocks up to {}, a loop",
            limits::PARAMETERS,
            limits::RESULTS,
            spaced(limits::FUNCTION_WEIGHT)
        ),
        format!(
            "| component | {} instances, {} memories, {} tables, {} handles",
            limits::INSTANCES,
            limits::MEMORIES,
            limits::TABLES,
            limits::HANDLES
        ),
        format!("an instruction, {} for calling the host", limits::CALL_FUEL),
        format!("{} KiB of code in a function", limits::FUNCTION_BYTES >> 10),
        format!(
            "| compilation | {} s, a component {} s |",
            limits::COMPILE_SECONDS,
            limits::COMPONENT_COMPILE_SECONDS
        ),
        format!("| memory | {} MiB", limits::MEMORY_BYTES >> 20),
        format!("| tables | {} elements", spaced(limits::TABLE_ELEMENTS as u64)),
        format!("| stack | {} KiB", limits::STACK_BYTES >> 10),
        format!("| fuel | {} for a plan, {} for", spaced(limits::FUEL), spaced(limits::SHORT_FUEL)),
        format!("| response | {} MiB", limits::RESPONSE_BYTES >> 20),
        format!("| log | {} lines a call, {} characters", limits::LOG_LINES, limits::TEXT_CHARACTERS),
    ] {
        assert!(page.contains(&limit), "the page does not say `{limit}`");
    }
}

/// The page shows the world as it stands in the SDK, without its comments.
#[test]
fn the_abi_page_has_the_world() {
    let read = |path: &str| fs::read_to_string(paths::repository().join(path)).unwrap();
    let page = read("docs/abi/policy-v1.md");
    let shown = page.split("```wit\n").nth(1).unwrap().split("```").next().unwrap();
    let plain = |wit: &str| -> String {
        wit.lines()
            .filter(|line| !line.trim().is_empty() && !line.trim().starts_with("///"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(plain(shown), plain(&read("sdk/wit/policy.wit")));
}

/// Layers and timesteps, without statistics. One id has what JSON escapes.
fn request() -> PolicyRequest {
    let layers = vec![
        testing::layer("mm0.img.attn.q_proj", Role::Q, 8, 8),
        testing::layer("mm0.\"]}\\.fc1 é", Role::Fc1, 8, 8),
        testing::layer("mm0.img.mlp.fc2", Role::Fc2, 8, 8),
    ];
    let timesteps = testing::timesteps(9);
    PolicyRequest::new("a \"model\": [{", layers, timesteps)
}

fn plan(language: &str, request: &PolicyRequest) -> PolicyPlan {
    WasmPolicy::load(&template(language), &Value::Null).unwrap().run(request).unwrap().plan
}

#[test]
fn templates_of_all_languages_have_the_same_plan() {
    let request = request();
    let rust = plan("rust", &request);
    assert_eq!(rust.layers.iter().map(|l| l.shift).collect::<Vec<_>>(), [false, false, true]);
    for (layer, spec) in rust.layers.iter().zip(&request.layers) {
        assert_eq!((&layer.id, layer.weight_bits), (&spec.id, 4));
        assert_eq!(layer.activation_bits, [6, 6, 6, 6, 6, 6, 6, 8, 8]);
    }
    for language in ["c", "assemblyscript"] {
        assert_eq!(plan(language, &request), rust, "{language}");
    }
}

#[test]
fn templates_refuse_settings_they_do_not_know() {
    let cases = [
        ("rust", "settings: unknown field `nonesuch`, expected `late`"),
        ("c", "settings: this policy has none"),
        ("assemblyscript", "settings: this policy has none"),
    ];
    for (language, message) in cases {
        let settings = json!({"nonesuch": [1, {"a": "}"}]});
        let refused = WasmPolicy::load(&template(language), &settings).err().expect("an error").to_string();
        assert!(refused.ends_with(message), "{language}: {refused}");
    }
}

#[test]
fn settings_reach_the_rust_template() {
    let policy = WasmPolicy::load(&template("rust"), &json!({"late": 0.5})).unwrap();
    let bits = policy.run(&request()).unwrap().plan.layers[0].activation_bits.clone();
    assert_eq!(bits, [6, 6, 6, 6, 6, 8, 8, 8, 8]);
}
