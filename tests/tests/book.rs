//! The book: every chapter is there, links lead somewhere, what is shown is what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use taq_core::artifacts::schemas;
use taq_core::manifest::Pipeline;
use taq_tests::markdown::{Block, anchors, blocks, links, run};
use taq_tests::paths::repository;
use taq_tests::wasm::compiles_to_wasm;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn docs() -> PathBuf {
    repository().join("docs")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every Markdown page below a folder of the repository.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "runs", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_summary_names_every_chapter_once() {
    let summary = read(&docs().join("SUMMARY.md"));
    let chapters: Vec<PathBuf> = links(&summary).iter().map(|link| docs().join(link)).collect();
    let unique: BTreeSet<&PathBuf> = chapters.iter().collect();
    assert_eq!(unique.len(), chapters.len(), "a chapter appears twice");
    let there: Vec<PathBuf> = pages(&docs()).into_iter().filter(|p| !p.ends_with("SUMMARY.md")).collect();
    assert_eq!(unique.into_iter().collect::<Vec<_>>(), there.iter().collect::<Vec<_>>());
    for chapter in &chapters {
        assert!(read(chapter).starts_with("# "), "{} has no title", chapter.display());
    }
}

/// Every link inside the repository leads to a file and, where it names one, a heading.
#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for page in pages(repository()) {
        // Templates are read where they were written to.
        if page.starts_with(repository().join("sdk/templates")) && !page.ends_with("templates/README.md") {
            continue;
        }
        let text = read(&page);
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}", page.display());
            if !heading.is_empty() {
                let there = anchors(&read(&target));
                assert!(there.iter().any(|a| a == heading), "{} links to {link}: {there:?}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 80, "only {checked} links");
}

/// Every manifest that is shown can be read, and every JSON document parsed.
#[test]
fn documents_that_are_shown_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifests = 0;
    for page in pages(&docs()) {
        for Block { info, line, text } in blocks(&read(&page)) {
            let place = format!("{}:{line}", page.display());
            match info.split(' ').next().unwrap_or_default() {
                "toml" => {
                    let file = folder.path().join("pipeline.toml");
                    fs::write(&file, &text).unwrap();
                    Pipeline::read(&file).unwrap_or_else(|e| panic!("{place}: {e}"));
                    manifests += 1;
                }
                "json" => {
                    serde_json::from_str::<serde_json::Value>(&text)
                        .unwrap_or_else(|e| panic!("{place}: {e}"));
                }
                "sh" | "rust" | "python" | "text" | "wit" => {}
                other => panic!("{place}: a block in `{other}`, which no test looks at"),
            }
        }
    }
    assert!(manifests >= 1);
}

#[test]
fn every_schema_is_explained() {
    let page = read(&docs().join("documents.md"));
    for (name, _) in schemas() {
        assert!(page.contains(&format!("`{name}`")), "docs/documents.md does not explain `{name}`");
    }
}

/// The codes in the sources, and no others, each with its row.
#[test]
fn every_error_code_is_explained() {
    let sources: Vec<String> =
        ["core/src/error.rs", "cli/src/error.rs"].iter().map(|p| read(&repository().join(p))).collect();
    let codes: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.split("\"taq::").skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert!(codes.len() > 12, "{codes:?}");
    let page = read(&docs().join("errors.md"));
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `taq::"))
        .map(|rest| rest.split('`').next().unwrap())
        .collect();
    assert_eq!(rows, codes.into_iter().collect::<Vec<_>>(), "docs/errors.md, in the order of the alphabet");
}

/// A page's files and commands as one script: blocks `file=NAME` are written, blocks `sh run` are run.
fn script(page: &str) -> String {
    let mut script = String::new();
    for Block { info, text, .. } in blocks(&read(&docs().join(page))) {
        if let Some(file) = info.split(' ').find_map(|word| word.strip_prefix("file=")) {
            script.push_str(&format!("cat > {file} <<'END_OF_FILE'\n{text}END_OF_FILE\n"));
        } else if info == "sh run" {
            script.push_str(&text);
        }
    }
    assert!(script.contains("taq "), "{page} has nothing to run");
    script
}

/// The same with less to compute. Every change must find its text.
fn smaller(script: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(script.to_owned(), |script, (from, to)| {
        assert!(script.contains(from), "`{from}` is not in\n{script}");
        script.replace(from, to)
    })
}

#[test]
fn run_a_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let script = smaller(
        &script("run.md"),
        &[
            ("num_images = 16", "num_images = 2\nnum_steps = 4"),
            ("--num-images 16", "--num-images 2 --num-steps 4"),
            ("iters = 100", "iters = 2"),
            ("rows = 128", "rows = 4\nheld_out_rows = 2"),
            ("\"parachute\", \"couch and lamp\", \"japan flag\"", "\"parachute\""),
        ],
    );
    run(&script, HOST, folder.path());
    for file in ["generated/comparison.png", "report.json", "report.html", "bench/bench.md"] {
        assert!(folder.path().join("runs/first").join(file).is_file(), "{file}");
    }
    let table = read(&folder.path().join("runs/first/bench/bench.md"));
    for row in ["fp", "w4a8", "nearest", "quantized", "second"] {
        assert!(table.lines().any(|line| line.starts_with("| ") && line.contains(row)), "{row}:\n{table}");
    }
    assert!(folder.path().join("man1/taq-round.1").is_file() && folder.path().join("taq.bash").is_file());
}

#[test]
fn write_a_policy() {
    if !compiles_to_wasm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let short = "cd spiky\nsed -i.bak 's/num_images = 16/num_images = 2\\nnum_steps = 4/' pipeline.toml\n";
    let script = smaller(&script("write-a-policy.md"), &[("cd spiky\n", short)]);
    run(&format!("unset CARGO_TARGET_DIR RUSTFLAGS\n{script}"), HOST, folder.path());
    let spiky = folder.path().join("spiky");
    let plan: serde_json::Value =
        serde_json::from_str(&read(&spiky.join("run/activations/quant_config.json"))).unwrap();
    let mut widths: BTreeMap<u64, usize> = BTreeMap::new();
    for step in ["0", "1", "2", "3"] {
        for entry in plan["per_timestep"][step].as_object().unwrap().values() {
            *widths.entry(entry["bits"].as_u64().unwrap()).or_default() += 1;
        }
    }
    // The last command of the page asks for half of all.
    assert_eq!(widths, BTreeMap::from([(6, 138), (8, 138)]));
    assert!(read(&spiky.join("run/bench/bench.md")).contains("| w8a6 |"));
}

#[test]
fn write_a_rounder() {
    let folder = tempfile::tempdir().unwrap();
    let short = "cd greedy\nsed -i.bak -e 's/num_images = 16/num_images = 2\\nnum_steps = 4/' -e 's/128/8/' pipeline.toml\n";
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = format!("target/release/{prefix}greedy{suffix}");
    let script = smaller(
        &script("write-a-rounder.md"),
        &[("cd greedy\n", short), ("--rows 128", "--rows 8"), ("target/release/libgreedy.so", &library)],
    );
    run(&format!("unset CARGO_TARGET_DIR RUSTFLAGS\n{script}"), HOST, folder.path());
    let greedy = folder.path().join("greedy");
    let table = read(&greedy.join("run/bench/bench.md"));
    for row in ["fp", "nearest", "quantized", "other"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("| {row}"))), "{row}:\n{table}");
    }
    // Both are better than nearest, and they are two.
    let sums = ["run", "other"].map(|run| {
        let config = read(&greedy.join(run).join("quantized_weights/config.json"));
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let blocks = config["block_metrics"].as_array().unwrap().clone();
        let sum = |what: &str| blocks.iter().map(|b| b[what].as_f64().unwrap()).sum::<f64>();
        assert!(sum("final_loss") < 0.95 * sum("nearest_loss"), "{config:.300}");
        sum("final_loss")
    });
    assert_ne!(sums[0], sums[1]);
}

#[test]
fn documents_and_schemas() {
    let folder = tempfile::tempdir().unwrap();
    run(&script("documents.md"), HOST, folder.path());
    assert!(folder.path().join("schemas/quant_config.schema.json").is_file());
}
