//! The schemas in `sdk/schemas` are those of the types in the code.

use std::collections::BTreeMap;
use std::fs;

use taq_core::artifacts::{atomic_write_bytes, schemas};
use taq_core::registry::{Kind, Registry};
use taq_plugins as _;
use taq_tests::paths;

const BLESS: &str = "run `TAQ_BLESS=1 cargo test --release -p taq-tests --test schema_drift` to update";

/// File name and content of every schema, as `taq schema --out` writes them.
fn expected() -> BTreeMap<String, String> {
    let text = |schema| serde_json::to_string_pretty(&schema).unwrap() + "\n";
    schemas().into_iter().map(|(name, schema)| (format!("{name}.schema.json"), text(schema))).collect()
}

#[test]
fn published_schemas_are_those_of_the_code() {
    let folder = paths::schemas();
    let expected = expected();
    let published: Vec<String> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();

    if std::env::var_os("TAQ_BLESS").is_some() {
        for name in published.iter().filter(|name| !expected.contains_key(*name)) {
            fs::remove_file(folder.join(name)).unwrap();
        }
        for (name, text) in &expected {
            atomic_write_bytes(&folder.join(name), text.as_bytes()).unwrap();
        }
        return;
    }

    let surplus: Vec<&String> = published.iter().filter(|name| !expected.contains_key(*name)).collect();
    assert!(surplus.is_empty(), "sdk/schemas has schemas of no document: {surplus:?}; {BLESS}");
    for (name, text) in &expected {
        match fs::read_to_string(folder.join(name)) {
            // A checkout may have turned line ends.
            Ok(found) if found.replace("\r\n", "\n") == *text => {}
            Ok(found) => {
                let line = found.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0) + 1;
                panic!("sdk/schemas/{name} differs from the code, first in line {line}; {BLESS}");
            }
            Err(e) => panic!("sdk/schemas/{name} cannot be read ({e}); {BLESS}"),
        }
    }
}

/// The settings that a WASM policy describes are those of the built-in.
#[test]
fn settings_schemas_of_policies_are_those_of_the_code() {
    let plugins = Registry::linked().unwrap();
    for name in ["baseline-a8", "budget", "multitier"] {
        let schema = plugins.find(Kind::Policy, name).unwrap().settings();
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let path = paths::repository().join(format!("policies/{name}/settings.schema.json"));
        if std::env::var_os("TAQ_BLESS").is_some() {
            atomic_write_bytes(&path, text.as_bytes()).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
        assert!(found == text, "{} differs from the code; {BLESS}, then policies/build.sh", path.display());
    }
}

/// Every schema says which dialect it is in, what it describes, and that other fields are errors.
#[test]
fn schemas_describe_their_documents() {
    for (name, schema) in schemas() {
        let value = serde_json::to_value(schema).unwrap();
        assert!(value["$schema"].is_string(), "{name} has no $schema");
        assert!(value["title"].is_string(), "{name} has no title");
        assert!(value["description"].is_string(), "{name} has no description");
    }
}
