//! The plugin of the README is the example file, and works.

use std::fs;
use std::path::Path;

use serde_json::json;
use taq_core::registry::{Kind, Registry};
use taq_core::{PolicyRequest, Role, Timestep, testing};
use taq_tests::paths::repository;

#[allow(dead_code, reason = "its `main` is for the host that it builds")]
#[path = "../examples/careful_keys.rs"]
mod careful_keys;

#[test]
fn the_readme_shows_the_example() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let example = fs::read_to_string(repository().join("tests/examples/careful_keys.rs")).unwrap();
    let code = example.split_once("\n\n").expect("a head, then the code").1;
    assert!(readme.contains(code), "README.md and tests/examples/careful_keys.rs differ");
}

#[test]
fn the_example_keeps_keys_at_eight_bits() {
    let plugins = Registry::linked().unwrap();
    assert_eq!(
        plugins.find(Kind::Policy, "careful-keys").unwrap().summary,
        "Eight-bit keys, four bits elsewhere."
    );
    let layers = [("mm0.img.attn.q_proj", Role::Q), ("mm0.img.attn.k_proj", Role::K)];
    let layers = layers.map(|(id, role)| testing::layer(id, role, 4, 4)).to_vec();
    let request = PolicyRequest::new("a model", layers, vec![Timestep { step: 0, sigma: 1.0 }]);
    let plan = plugins.policy("careful-keys", &json!({})).unwrap().assign(&request).unwrap();
    let bits: Vec<u8> = plan.layers.iter().map(|l| l.weight_bits).collect();
    assert_eq!(bits, [4, 8]);
}

/// Every file that the README links to is there.
#[test]
fn links_of_the_readme_lead_somewhere() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let targets: Vec<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect();
    assert!(targets.len() > 5);
    for target in targets.iter().filter(|t| !t.contains("://")) {
        let path: &Path = Path::new(target.split('#').next().unwrap());
        assert!(repository().join(path).exists(), "README.md links to {target}");
    }
}
