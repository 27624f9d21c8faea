//! The policies that come with taq decide the same, byte for byte, linked in and as WASM modules.

use serde_json::{Value, json};
use taq_core::registry::Registry;
use taq_core::wasm::WasmPolicy;
use taq_core::{LayerColumns, LayerSpec, PolicyRequest, Role, Stream, Timestep};
use taq_plugins as _;
use taq_tests::paths::repository;
use taq_tests::taq::succeed;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// Built-in name, module, and settings to try beside the defaults.
fn policies() -> [(&'static str, &'static str, Value); 3] {
    [
        ("a8", "baseline-a8", json!({ "bits_a": 6, "scale_source": "p999", "shift_post_gelu": false })),
        ("multitier", "multitier", json!({ "bits_w": 3 })),
        ("budget", "budget", json!({ "average_weight_bits": 3.7 })),
    ]
}

fn agree(request: &PolicyRequest) {
    let plugins = Registry::linked().unwrap();
    for (name, module, settings) in policies() {
        for settings in [json!({}), settings] {
            let native = plugins.policy(name, &settings).unwrap().assign(request).unwrap();
            let path = repository().join(format!("policies/{module}/{module}.wasm"));
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
    let mut layers = Vec::new();
    for block in 0..24 {
        for (stream, short) in [(Stream::Image, "img"), (Stream::Text, "txt")] {
            let last_text = block == 23 && stream == Stream::Text;
            for (role, name, width) in [
                (Role::Q, "attn.q_proj", [1536, 1536]),
                (Role::K, "attn.k_proj", [1536, 1536]),
                (Role::V, "attn.v_proj", [1536, 1536]),
                (Role::O, "attn.o_proj", [1536, 1536]),
                (Role::Fc1, "mlp.fc1", [1536, 6144]),
                (Role::Fc2, "mlp.fc2", [6144, 1536]),
            ] {
                if last_text && !matches!(role, Role::Q | Role::K | Role::V) {
                    continue;
                }
                layers.push(LayerSpec {
                    id: format!("mm{block}.{short}.{name}").as_str().into(),
                    block: format!("mm{block}").as_str().into(),
                    stream,
                    role,
                    in_features: width[0],
                    out_features: width[1],
                    post_gelu: role == Role::Fc2,
                });
            }
        }
    }
    assert_eq!(layers.len(), 285);
    let timesteps: Vec<_> = (0..50).map(|step| Timestep { step, sigma: 1.0 - step as f32 / 50.0 }).collect();
    let mut rng = taq_core::noise::Rng::new(7);
    let mut column = |low: f32, high: f32| -> Vec<f32> {
        (0..50).map(|_| low + (high - low) * rng.uniform() as f32).collect()
    };
    let statistics = layers
        .iter()
        .map(|layer| LayerColumns {
            id: layer.id.clone(),
            absmax: column(2.0, 20.0),
            min: column(-20.0, -1.0),
            max: column(1.0, 20.0),
            p001: column(-4.0, -1.0),
            p01: column(-2.0, -0.5),
            p50: column(0.1, 1.0),
            p99: column(1.0, 4.0),
            p999: column(1.5, 8.0),
            shift_magnitude: if layer.post_gelu { column(0.1, 2.0) } else { Vec::new() },
            shifted_absmax: if layer.post_gelu { column(1.0, 12.0) } else { Vec::new() },
            outlier_ratio: column(1.0, 9.0),
            spike_fraction: column(0.0, 0.1),
            batches: vec![4; 50],
            channel_absmax: Vec::new(),
        })
        .collect();
    let request =
        PolicyRequest { statistics, ..PolicyRequest::new("the size of SD3-Medium", layers, timesteps) };
    agree(&request);
}
