//! `taq doctor`: is this machine set up well, and is this build the right one for it?

use std::fmt::Write as _;
use std::time::Instant;

use mlx_rs::{Array, Device, DeviceType};
use serde::Serialize;
use serde_json::{Value, json};
use taq_core::Result;
use taq_core::registry::{Kind, Registry};

use super::Host;
use crate::args::DoctorArgs;
use crate::error::Failure;
use crate::output::{bytes, print, print_json, seconds};

/// Side of the square matrices that are multiplied.
const SIDE: i32 = 2048;
/// Side of a first try, so that a slow BLAS does not keep the user waiting.
const TRIAL_SIDE: i32 = 512;
/// Below this a CPU is not using its vector units: one core with AVX2 or NEON reaches more.
const SLOW_GFLOPS: f64 = 20.0;
/// Times that the product is measured; the best counts.
const REPEATS: usize = 5;

/// Everything that the doctor looks at.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    device: String,
    mlx: Mlx,
    cpu: Cpu,
    memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    matmul: Option<Matmul>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Value>,
    plugins: usize,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Mlx {
    version: &'static str,
    backend: &'static str,
    blas: &'static str,
}

#[derive(Debug, Serialize)]
struct Cpu {
    arch: &'static str,
    os: &'static str,
    threads: usize,
    rayon_threads: usize,
    features: Vec<&'static str>,
    thread_variables: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Matmul {
    side: i32,
    gflops: f64,
    seconds: f64,
}

/// Examines and prints.
pub(crate) fn doctor(host: &Host, args: &DoctorArgs) -> Result<(), Failure> {
    let findings = examine(host, args.quick)?;
    if args.json { print_json(&findings) } else { print(&describe(&findings)) }
}

fn examine(host: &Host, quick: bool) -> Result<Findings> {
    let mut warnings = Vec::new();
    let device = Device::try_default()?;
    let on_cpu = matches!(device.get_type()?, DeviceType::Cpu);
    let mlx = Mlx {
        version: mlx_sys::build_info::MLX_VERSION,
        backend: mlx_sys::build_info::BACKEND,
        blas: mlx_sys::build_info::BLAS,
    };
    if mlx.blas.to_lowercase().contains("reference") {
        warnings.push(slow_blas(&format!("MLX's matrix products run on {}, which is slow", mlx.blas)));
    }
    let matmul = if quick { None } else { Some(matmul()?) };
    if let Some(measured) = matmul
        && measured.gflops < SLOW_GFLOPS
        && on_cpu
        && warnings.is_empty()
    {
        let seen = format!("{:.1} GFLOP/s is slow for a matrix product", measured.gflops);
        warnings.push(slow_blas(&seen));
    }
    let memory = memory();
    if memory.available_bytes > 0 && memory.available_bytes < 2_000_000_000 {
        warnings.push(format!("only {} of memory are free: close programs", bytes(memory.available_bytes)));
    }
    let model = if quick { None } else { Some(model(&host.registry, &mut warnings)) };
    Ok(Findings {
        version: env!("CARGO_PKG_VERSION"),
        device: format!("{} {}", if on_cpu { "cpu" } else { "gpu" }, device.get_index()?),
        mlx,
        cpu: cpu(),
        memory,
        matmul,
        model,
        plugins: host.registry.iter().count(),
        warnings,
    })
}

fn slow_blas(seen: &str) -> String {
    format!(
        "{seen}. Install OpenBLAS (Debian, Ubuntu: `apt install libopenblas0-pthread`; Fedora: `dnf install \
         openblas`), let OPENBLAS_NUM_THREADS be the number of cores, and build taq again; native/README.md has \
         the details. Other load on this machine also slows it down"
    )
}

/// Speed of a product of two square matrices, f32, on the default device.
fn matmul() -> Result<Matmul> {
    let trial = product(TRIAL_SIDE, 3)?;
    if trial.gflops < 2.0 { Ok(trial) } else { product(SIDE, REPEATS) }
}

fn product(side: i32, repeats: usize) -> Result<Matmul> {
    let values: Vec<f32> = (0..side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let a = Array::from_slice(&values, &[side, side]);
    let b = a.transpose()?;
    mlx_rs::transforms::eval([&a, &b])?;
    let mut best = f64::INFINITY;
    for _ in 0..=repeats {
        let start = Instant::now();
        let c = a.matmul(&b)?;
        c.eval()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let operations = 2.0 * f64::from(side).powi(3);
    Ok(Matmul { side, gflops: operations / best / 1e9, seconds: best })
}

fn cpu() -> Cpu {
    let variables = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"];
    Cpu {
        arch: std::env::consts::ARCH,
        os: std::env::consts::OS,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        rayon_threads: rayon::current_num_threads(),
        features: features(),
        thread_variables: variables
            .iter()
            .filter_map(|name| std::env::var(name).ok().map(|value| format!("{name}={value}")))
            .collect(),
    }
}

/// The vector instructions that matter to taq's kernels and to BLAS.
#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let all = [
        ("sse4.2", has!("sse4.2")),
        ("avx", has!("avx")),
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
    ];
    all.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

/// The vector instructions that matter to taq's kernels and to BLAS.
#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let all = [
        ("neon", has!("neon")),
        ("fp16", has!("fp16")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
        ("sve", has!("sve")),
    ];
    all.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

/// The vector instructions that matter to taq's kernels and to BLAS.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

fn memory() -> Memory {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    Memory { total_bytes: system.total_memory(), available_bytes: system.available_memory() }
}

/// Loads the default model.
fn model(registry: &Registry, warnings: &mut Vec<String>) -> Value {
    let start = Instant::now();
    let Some((_, plugin)) = registry.iter().find(|(kind, _)| *kind == Kind::Model) else {
        warnings.push("no model plugin is linked into this program".into());
        return Value::Null;
    };
    match registry.model(plugin.name, &Value::Null) {
        Ok(model) => {
            let spec = model.spec();
            json!({
                "plugin": plugin.name,
                "name": spec.name,
                "fingerprint": spec.fingerprint,
                "blocks": spec.blocks.len(),
                "layers": spec.layers().count(),
                "seconds": start.elapsed().as_secs_f64(),
            })
        }
        Err(e) => {
            warnings.push(format!("the default model of `{}` does not load: {e}", plugin.name));
            json!({ "plugin": plugin.name, "error": e.to_string() })
        }
    }
}

fn describe(f: &Findings) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<8}  {value}");
    };
    line("taq", format!("{}, {} plugins", f.version, f.plugins));
    line("MLX", format!("{} ({}), BLAS: {}", f.mlx.version, f.mlx.backend, f.mlx.blas));
    line("device", f.device.clone());
    let mut cpu = format!("{} {}, {} threads", f.cpu.arch, f.cpu.os, f.cpu.threads);
    if f.cpu.rayon_threads != f.cpu.threads {
        let _ = write!(cpu, " ({} used by taq)", f.cpu.rayon_threads);
    }
    for part in [f.cpu.features.join(" "), f.cpu.thread_variables.join(" ")] {
        if !part.is_empty() {
            let _ = write!(cpu, ", {part}");
        }
    }
    line("CPU", cpu);
    line("memory", format!("{}, {} available", bytes(f.memory.total_bytes), bytes(f.memory.available_bytes)));
    if let Some(m) = f.matmul {
        line("matmul", format!("{:.0} GFLOP/s (f32, {side} × {side} × {side})", m.gflops, side = m.side));
    }
    if let Some(model) = &f.model {
        let word = |key: &str| model.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        let number = |key: &str| model.get(key).and_then(Value::as_u64).unwrap_or(0);
        line(
            "model",
            match model.get("error") {
                Some(_) => "not found".into(),
                None => format!(
                    "{} ({:.12}): {} blocks, {} quantizable layers, loaded in {}",
                    word("name"),
                    word("fingerprint"),
                    number("blocks"),
                    number("layers"),
                    seconds(model.get("seconds").and_then(Value::as_f64).unwrap_or(0.0)),
                ),
            },
        );
    }
    if f.warnings.is_empty() {
        text.push_str("\nAll is well.\n");
    }
    for warning in &f.warnings {
        let _ = writeln!(text, "\nWARNING  {warning}.");
    }
    text
}
