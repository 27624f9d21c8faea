//! The policies that come with taq decide the same, byte for byte, linked in and as WASM modules.

use serde_json::{Value, json};
use taq_core::registry::Registry;
use taq_core::wasm::WasmPolicy;
use taq_core::{PolicyRequest, testing};
use taq_plugins as _;
use taq_tests::paths::repository;
use taq_tests::taq::succeed;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// Policies, with settings to try beside the defaults.
fn policies() -> [(&'static str, Value); 4] {
    [
        ("baseline-a8", json!({ "bits_a": 6, "scale_source": "p999", "shift_post_gelu": false })),
        ("multitier", json!({ "bits_w": 3, "outlier_ratio": 1.2 })),
        ("budget", json!({ "average_weight_bits": 3.7 })),
        ("budget", json!({ "weight_bytes": 1u64 << 40, "bit_ops": 0.6 })),
    ]
}

fn agree(request: &PolicyRequest) {
    let plugins = Registry::linked().unwrap();
    for (name, settings) in policies() {
        for settings in [json!({}), settings] {
            let native = plugins.policy(name, &settings).unwrap().assign(request).unwrap();
            let path = repository().join(format!("policies/{name}/{name}.wasm"));
            let policy = WasmPolicy::load(&path, &settings).unwrap();
            assert_eq!(policy.info().name, name);
            let run = policy.run(request).unwrap();
            let same = run.response == serde_json::to_vec(&native).unwrap();
            assert!(same, "{name} with {settings}: {} decides otherwise as a module", request.model);
            assert_eq!(
                policy.run(request).unwrap(),
                run,
                "{name}: another plan or other fuel the second time"
            );
            assert!(run.memory < 64 << 20, "{name}: {} bytes of memory", run.memory);
        }
    }
}

#[test]
fn on_the_statistics_of_the_emoji_model() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let run = run.to_str().unwrap();
    succeed(HOST, &["calibrate", "--num-images", "2", "--num-steps", "6", "--no-images", "--run", run]);
    succeed(HOST, &["observe", "--run", run]);
    let request = succeed(HOST, &["policy", "request", "--run", run]);
    let request: PolicyRequest = serde_json::from_str(&request).unwrap();
    assert_eq!((request.layers.len(), request.timesteps.len()), (69, 6));
    agree(&request);
}

/// As many layers and timesteps as Stable Diffusion 3 Medium has: 24 blocks, 285 layers, 50 timesteps.
#[test]
fn on_a_request_of_the_size_of_sd3_medium() {
    let request = testing::sd3_request(24, 1536, 50);
    assert_eq!((request.layers.len(), request.timesteps.len()), (285, 50));
    agree(&request);
}
