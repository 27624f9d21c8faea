//! `taq doctor`.

mod common;

use common::taq;
use serde_json::Value;

#[test]
fn json_has_what_support_asks_for() {
    let call = taq(&["doctor", "--json"]).exits(0);
    let found: Value = serde_json::from_str(&call.stdout).unwrap();
    assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
    for pointer in ["/mlx/version", "/mlx/backend", "/mlx/blas", "/cpu/arch", "/device"] {
        let text = found.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        assert!(!text.is_empty(), "{pointer} in {found}");
    }
    assert!(found["cpu"]["threads"].as_u64().unwrap() >= 1);
    let memory = &found["memory"];
    assert!(memory["total_bytes"].as_u64().unwrap() >= memory["available_bytes"].as_u64().unwrap());
    assert!(memory["available_bytes"].as_u64().unwrap() > 0);
    assert!(found["matmul"]["gflops"].as_f64().unwrap() > 0.1);
    assert!(found["warnings"].is_array());
    let model = &found["model"];
    assert!(model["error"].is_null(), "the default model does not load: {model}");
    assert_eq!(model["layers"], 69);
}

#[test]
fn quick_does_not_measure() {
    let found: Value = serde_json::from_str(&taq(&["doctor", "--json", "--quick"]).exits(0).stdout).unwrap();
    assert!(found.get("matmul").is_none() && found.get("model").is_none(), "{found}");
    let text = taq(&["doctor", "--quick"]).exits(0).stdout;
    assert!(text.lines().any(|l| l.starts_with("MLX ")), "{text}");
}

#[test]
fn the_gpu_is_refused_where_there_is_none() {
    let found: Value = serde_json::from_str(&taq(&["doctor", "--json", "--quick"]).exits(0).stdout).unwrap();
    let call = taq(&["doctor", "--quick", "--device", "gpu"]);
    if found["mlx"]["backend"] == "cpu" {
        call.exits(2).says("MLX for the CPU only").says("taq::unsupported");
    } else {
        call.exits(0);
    }
}
