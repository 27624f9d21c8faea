//! `taq plugin new`: every project does what its README says, from building to a table that compares it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use taq_tests::markdown::{blocks, run};
use taq_tests::paths::repository;
use taq_tests::taq::succeed;
use taq_tests::wasm::compiles_to_wasm;
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// A project in a folder that is removed with it.
struct Project {
    folder: TempDir,
}

impl Project {
    fn new(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine");
        succeed(HOST, &[&["plugin", "new", path.to_str().unwrap()], arguments].concat());
        let project = Self { folder };
        // As it is, but with less to compute.
        project.edit("pipeline.toml", |text| {
            assert!(text.contains("num_images = 16"), "{text}");
            text.replace("num_images = 16", "num_images = 2\nnum_steps = 4").replace("rows = 128", "rows = 8")
        });
        project
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mine")
    }

    fn edit(&self, file: &str, change: impl Fn(&str) -> String) {
        let path = self.path().join(file);
        fs::write(&path, change(&fs::read_to_string(&path).unwrap())).unwrap();
    }

    /// Runs the first block of the README, but for tools that it installs.
    fn follow_the_readme(&self, change: impl Fn(&str) -> String) {
        let readme = fs::read_to_string(self.path().join("README.md")).unwrap();
        let block = blocks(&readme).into_iter().find(|b| b.info == "sh").expect("what to do");
        let lines: Vec<&str> = block.text.lines().filter(|line| !line.starts_with("rustup ")).collect();
        run(&change(&lines.join("\n")), HOST, &self.path());
    }

    fn document(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path().join("run").join(file)).unwrap()).unwrap()
    }

    /// The pipeline ran, and the comparison has rows.
    fn was_compared(&self, rows: &[&str]) {
        assert_eq!(self.document("report.json")["format"], "taq.report.v1");
        let table = fs::read_to_string(self.path().join("run/bench/bench.md")).unwrap();
        for row in rows {
            assert!(table.lines().any(|l| l.starts_with(&format!("| {row}"))), "{row} is not in\n{table}");
        }
    }

    /// The README's first block with the names that libraries have on this system.
    fn follow_the_native_readme(&self, change: impl Fn(&str) -> String) {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        self.follow_the_readme(|script| {
            let script = script.replace("/libmine.so", &format!("/{prefix}mine{suffix}"));
            change(&format!("unset CARGO_TARGET_DIR RUSTFLAGS\n{script}"))
        });
    }

    /// A rounder's project is compared, and its blocks err less than rounded to nearest.
    fn is_better_than_nearest(&self) {
        self.was_compared(&["fp", "nearest", "quantized"]);
        let config = self.document("quantized_weights/config.json");
        assert_eq!(config["rounder"]["name"], "coordinate-descent", "{config:.400}");
        let blocks = config["block_metrics"].as_array().unwrap();
        let sum = |what: &str| blocks.iter().map(|b| b[what].as_f64().unwrap()).sum::<f64>();
        let (ours, nearest) = (sum("final_loss"), sum("nearest_loss"));
        assert!(blocks.len() == 6 && ours < 0.9 * nearest, "{ours} of {nearest}");
    }

    /// An observer's project is compared, and some of its ranges are narrower than the extremes beside them.
    fn clips_what_lies_far_out(&self) {
        self.was_compared(&["fp", "nearest"]);
        let step = self.document("activations/timestep_stats/step_0_index.json");
        let layers = step.as_object().unwrap().values();
        let ends = |range: &Value| [0, 1].map(|end| range[end].as_f64().unwrap());
        let mut narrower = 0;
        for layer in layers.filter(|l| l["range_min"].is_number()) {
            let ours = [&layer["range_min"], &layer["range_max"]].map(|v| v.as_f64().unwrap());
            let all = ends(&layer["beside"]["minmax"]);
            assert!(all[0] <= ours[0] && ours[1] <= all[1], "{layer}");
            narrower += usize::from(ours[1] - ours[0] < 0.99 * (all[1] - all[0]));
        }
        assert!(narrower > 5, "{narrower}");
    }

    /// A policy's project has the rule of all templates: eight bits in the last quarter of four timesteps.
    fn has_late_8(&self) {
        self.was_compared(&["fp", "w4a8", "nearest"]);
        let plan = self.document("activations/quant_config.json");
        assert_eq!(bits(&plan), [6, 6, 6, 8].map(Some));
    }
}

/// Bits of a layer's input at four timesteps.
fn bits(plan: &Value) -> [Option<u64>; 4] {
    ["0", "1", "2", "3"].map(|step| plan["per_timestep"][step]["mm0.img.attn.q_proj"]["bits"].as_u64())
}

fn can(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_policy_in_wat() {
    let project = Project::new(&["--kind", "policy", "--lang", "wat"]);
    project.follow_the_readme(str::to_owned);
    project.has_late_8();
}

#[test]
fn a_policy_in_rust() {
    if !compiles_to_wasm() {
        return;
    }
    let project = Project::new(&["--kind", "policy", "--lang", "rust"]);
    project.follow_the_readme(|script| format!("unset CARGO_TARGET_DIR RUSTFLAGS\n{script}"));
    let plan = project.document("activations/quant_config.json");
    // The README's last line decides anew, with other settings.
    assert_eq!(bits(&plan), [6, 6, 8, 8].map(Some));
    project.was_compared(&["fp", "w4a8", "nearest"]);
}

fn python() -> String {
    std::env::var("TAQ_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

#[test]
fn a_rounder_in_rust() {
    let project = Project::new(&["--kind", "rounder"]);
    project.follow_the_native_readme(str::to_owned);
    project.is_better_than_nearest();
}

/// Whether there is a C compiler; `CC` names another one than `cc`.
fn compiles_c() -> bool {
    let there = can(&compiler(), &["--version"]);
    if !there {
        eprintln!("skipped: no C compiler");
    }
    there
}

fn compiler() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

/// The script with this compiler, and without sanitizers where it has none.
fn with_c(script: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("a.c"), folder.path().join("a"));
    fs::write(&source, "int main(void) { return 0; }").unwrap();
    let arguments =
        ["-fsanitize=address,undefined", "-o", program.to_str().unwrap(), source.to_str().unwrap()];
    let script = script.replace("\ncc ", &format!("\n{} ", compiler()));
    assert!(script.contains(&format!("\n{} -O3 -shared", compiler())), "{script}");
    if can(&compiler(), &arguments) {
        return script;
    }
    eprintln!("without sanitizers, which this compiler does not have");
    script.replace("-fsanitize=address,undefined ", "")
}

#[test]
fn a_rounder_in_c() {
    if !compiles_c() {
        return;
    }
    let project = Project::new(&["--kind", "rounder", "--lang", "c"]);
    project.follow_the_native_readme(with_c);
    project.is_better_than_nearest();
}

#[test]
fn a_rounder_in_zig() {
    let zig = if can("zig", &["version"]) { "zig".to_owned() } else { format!("{} -m ziglang", python()) };
    if !can("sh", &["-c", &format!("{zig} version | grep -q '^0[.]16[.]'")]) {
        eprintln!("skipped: neither Zig 0.16 nor the Python package ziglang");
        return;
    }
    let project = Project::new(&["--kind", "rounder", "--lang", "zig"]);
    project.follow_the_native_readme(|script| script.replace("\nzig ", &format!("\n{zig} ")));
    project.is_better_than_nearest();
}

#[test]
fn an_observer_in_rust() {
    let project = Project::new(&["--kind", "observer"]);
    project.follow_the_native_readme(str::to_owned);
    project.clips_what_lies_far_out();
}

#[test]
fn an_observer_in_c() {
    if !compiles_c() {
        return;
    }
    let project = Project::new(&["--kind", "observer", "--lang", "c"]);
    project.follow_the_native_readme(with_c);
    project.clips_what_lies_far_out();
}

/// A clang that knows WebAssembly: `TAQ_TEST_CLANG`, the machine's with its linker, or that of the Python package ziglang.
fn clang() -> Option<String> {
    let python = python();
    match std::env::var("TAQ_TEST_CLANG") {
        Ok(clang) => Some(clang),
        Err(_) if can("clang", &["--version"]) && can("wasm-ld", &["--version"]) => Some("clang".to_owned()),
        Err(_) if can(&python, &["-m", "ziglang", "version"]) => Some(format!("{python} -m ziglang cc")),
        Err(_) => None,
    }
}

#[test]
fn a_policy_in_c() {
    let Some(clang) = clang() else {
        eprintln!("skipped: neither clang and wasm-ld, nor the Python package ziglang");
        return;
    };
    let project = Project::new(&["--kind", "policy", "--lang", "c"]);
    project.follow_the_readme(|script| {
        assert!(script.starts_with("clang "), "{script}");
        script.replacen("clang", &clang, 1)
    });
    project.has_late_8();
}

#[test]
fn a_policy_in_assemblyscript() {
    let project = Project::new(&["--kind", "policy", "--lang", "assemblyscript"]);
    let installs = Command::new("npm").args(["install", "--silent"]).current_dir(project.path()).status();
    if !installs.is_ok_and(|status| status.success()) {
        eprintln!("skipped: `npm install` of the AssemblyScript compiler does not work here");
        return;
    }
    project.follow_the_readme(str::to_owned);
    project.has_late_8();
}

/// Compiles all of taq once more, as the first workspace of one's own does: Cargo's names of crates outside a workspace hold
/// their absolute paths, so nothing that depends on one of taq's is shared with taq's own builds.
#[test]
fn a_host() {
    if std::env::var_os("TAQ_TEST_HOST").is_none() {
        eprintln!("skipped: set TAQ_TEST_HOST, for it compiles all of taq");
        return;
    }
    let project = Project::new(&["--kind", "host"]);
    project.edit(".cargo/config.toml", |text| {
        let shared = format!("\"{}\"", repository().join("target/hosts").display());
        assert!(text.contains(&shared), "{text}");
        text.to_owned()
    });
    project.follow_the_readme(|script| format!("unset CARGO_TARGET_DIR\n{script}"));
    project.was_compared(&["fp", "nearest", "quantized"]);
    let config = project.document("quantized_weights/config.json");
    assert!(config.to_string().contains("loss-aware-clipping"), "{config:.400}");
}

/// The template's program, which this workspace compiles too, runs the project's pipeline, and Cargo takes its manifest.
#[test]
fn a_host_runs_its_pipeline() {
    let project = Project::new(&["--kind", "host"]);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let in_project = |program: &std::ffi::OsStr, arguments: &str| {
        let output =
            Command::new(program).args(arguments.split(' ')).current_dir(project.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    in_project(&cargo, "tree --offline");
    let host = env!("CARGO_BIN_EXE_my-host").as_ref();
    in_project(host, "run pipeline.toml");
    in_project(host, "bench --run run --config fp,nearest,quantized");
    project.was_compared(&["fp", "nearest", "quantized"]);
    let config = project.document("quantized_weights/config.json");
    assert!(config.to_string().contains("loss-aware-clipping"), "{config:.400}");
}
