//! Figures: every one is drawn from a small run, shows something, and what is wrong with a request is said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use taq_core::image::Image;
use taq_tests::taq::{fail, folded, succeed};
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

type Colour = [u8; 3];
const BLUE: Colour = [0, 114, 178];
const ORANGE: Colour = [230, 159, 0];
const GREEN: Colour = [0, 158, 115];
const RED: Colour = [213, 94, 0];
/// 4 and 8 bits on the map of plans.
const FOUR: Colour = [49, 103, 141];
const EIGHT: Colour = [253, 231, 37];

/// A run of all stages that figures need, two blocks rounded, and what `round --plots` printed.
static RUN: LazyLock<(TempDir, String)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let stage = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').chain(["--run", run.to_str().unwrap()]).collect();
        succeed(HOST, &arguments)
    };
    stage("calibrate --num-images 2 --num-steps 4");
    stage("observe");
    stage("decide");
    let round = "round --iters 101 --batch-size 2 --rows 4 --held-out-rows 2 --blocks mm0,mm1 --plots";
    let said = stage(round);
    (folder, said)
});

fn run() -> String {
    RUN.0.path().join("run").to_str().unwrap().to_owned()
}

/// The run's documents, to be damaged.
fn copied() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("run");
    copy_folder(Path::new(&run()), &copy);
    (folder, copy)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn plot(run: &str, arguments: &str) -> String {
    let words = arguments.split(' ').filter(|w| !w.is_empty());
    succeed(HOST, &["plot", "--run", run].into_iter().chain(words).collect::<Vec<_>>())
}

#[track_caller]
fn refused(run: &str, arguments: &str, expected: &[&str]) {
    let words: Vec<&str> = ["plot", "--run", run].into_iter().chain(arguments.split_whitespace()).collect();
    let (code, stderr) = fail(HOST, &words);
    let message = folded(&stderr);
    assert_eq!(code, 2, "taq {words:?}: {stderr}");
    for part in expected {
        assert!(message.contains(part), "taq {words:?} should say “{part}”:\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// How many pixels have each colour.
fn colours(image: &Image) -> BTreeMap<Colour, usize> {
    let mut counts = BTreeMap::new();
    for pixel in image.pixels().chunks_exact(3) {
        let colour = [0, 1, 2].map(|c| (pixel[c] * 255.0).round() as u8);
        *counts.entry(colour).or_default() += 1;
    }
    counts
}

/// Every figure that `taq plot` knows, for two layers, and colours that its data has.
const FIGURES: [(&str, &[Colour]); 22] = [
    ("bits_by_layer_and_step", &[FOUR, EIGHT]),
    ("channel_distribution_mm0_img_mlp_fc2", &[BLUE, RED, GREEN]),
    ("channel_distribution_mm0_txt_attn_q_proj", &[BLUE, RED, GREEN]),
    ("channel_ranges_mm0_img_mlp_fc2", &[BLUE, RED]),
    ("channel_ranges_mm0_txt_attn_q_proj", &[BLUE]),
    ("distribution_mm0_img_mlp_fc2", &[]),
    ("distribution_mm0_txt_attn_q_proj", &[RED]),
    ("heatmap_mean", &[]),
    ("heatmap_range", &[]),
    ("heatmap_std", &[]),
    ("held_out_error", &[BLUE, ORANGE]),
    ("histogram_mm0_img_mlp_fc2", &[BLUE, RED, GREEN]),
    ("histogram_mm0_txt_attn_q_proj", &[BLUE, RED]),
    ("integers_mm0", &[BLUE, RED]),
    ("integers_mm1", &[BLUE, RED]),
    ("loss_curves", &[BLUE, ORANGE]),
    ("negative_fraction_heatmap", &[]),
    ("range_vs_timestep_all", &[BLUE, ORANGE, GREEN]),
    ("range_vs_timestep_image", &[BLUE, ORANGE, GREEN]),
    ("range_vs_timestep_text", &[BLUE, ORANGE, GREEN]),
    ("snapshot_bars", &[]),
    ("temporal_lines", &[BLUE, ORANGE, GREEN, RED]),
];
const SCATTER: (&str, &[Colour]) = ("variability_scatter", &[BLUE, ORANGE, GREEN, RED]);

#[test]
fn every_figure_is_drawn_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deep/figures");
    let request = "--plot-distributions --format png,svg --layers mm0.img.mlp.fc2 mm0_txt_attn_q_proj \
                   --snapshot-steps 0,1 3 --out ";
    let said = plot(&run(), &format!("{request}{}", out.display()));
    let figures = FIGURES.into_iter().chain([SCATTER]);
    let expected: BTreeSet<String> =
        figures.clone().flat_map(|(name, _)| ["png", "svg"].map(|e| format!("{name}.{e}"))).collect();
    assert_eq!(names(&out).into_iter().collect::<BTreeSet<_>>(), expected);
    assert!(expected.iter().all(|name| said.contains(name)), "{said}");
    for (name, data) in figures {
        let (image, _) = Image::read_png(&out.join(format!("{name}.png"))).unwrap();
        let (width, height) = (image.width(), image.height());
        assert!(
            (2000..=3000).contains(&width) && (600..=3200).contains(&height),
            "{name}: {width} × {height}"
        );
        let counts = colours(&image);
        let white = counts[&[255; 3]] as f64 / (width * height) as f64;
        assert!((0.05..0.99).contains(&white), "{name}: {white} of it is white");
        for colour in data {
            let count = counts.get(colour).copied().unwrap_or(0);
            assert!(count > 100, "{name}: {count} pixels of {colour:?}");
        }
        if name.contains("heatmap") || name.starts_with("distribution") {
            let broad = counts.values().filter(|n| **n > 100).count();
            assert!(broad > 20, "{name}: {broad} colours");
        }

        let text = fs::read_to_string(out.join(format!("{name}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&text).unwrap_or_else(|e| panic!("{name}.svg: {e}"));
        let root = document.root_element();
        assert!(root.has_tag_name(("http://www.w3.org/2000/svg", "svg")), "{name}");
        // Pixels are drawn twice as dense as the document is shown.
        assert_eq!(root.attribute("width"), Some(format!("{}", width / 2).as_str()), "{name}");
        assert_eq!(root.attribute("viewBox"), Some(format!("0 0 {width} {height}").as_str()), "{name}");
        let shapes = root.descendants().filter(|n| n.is_element() && !n.has_tag_name("text")).count();
        let texts = root.descendants().filter(|n| n.tag_name().name() == "text").count();
        assert!(shapes > 20 && texts > 5, "{name}: {shapes} shapes, {texts} texts");
        for colour in data {
            let [r, g, b] = colour;
            assert!(text.contains(&format!("#{r:02X}{g:02X}{b:02X}")), "{name}.svg lacks {colour:?}");
        }
    }
}

#[test]
fn rounding_draws_its_figures_and_a_second_drawing_is_the_same() {
    let plots = Path::new(&run()).join("activations/plots");
    let expected = ["held_out_error.png", "integers_mm0.png", "integers_mm1.png", "loss_curves.png"];
    assert!(expected.iter().all(|name| RUN.1.contains(name)), "{}", RUN.1);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    plot(&run(), &format!("--figures loss-curves,held-out-error integers --out {}", out.display()));
    assert_eq!(names(out), expected);
    for name in expected {
        assert!(fs::read(plots.join(name)).unwrap() == fs::read(out.join(name)).unwrap(), "{name} differs");
    }
}

#[test]
fn what_is_usual_needs_no_flags() {
    let (_folder, run) = copied();
    fs::remove_dir_all(run.join("activations/plots")).unwrap();
    fs::remove_dir_all(run.join("quantized_weights")).unwrap();
    let said = plot(run.to_str().unwrap(), "");
    let names = names(&run.join("activations/plots"));
    // Six layers are shown one by one; nothing was rounded.
    assert_eq!(names.iter().filter(|n| n.starts_with("histogram_")).count(), 6, "{names:?}");
    assert!(names.iter().all(|n| n.ends_with(".png") && said.contains(n)), "{said}");
    assert!(names.contains(&"bits_by_layer_and_step.png".to_owned()));
    assert!(!names.iter().any(|n| n.starts_with("loss") || n.starts_with("distribution")), "{names:?}");
    // The old names of layers are understood.
    plot(run.to_str().unwrap(), "--figures temporal-lines --layers mm_00_img");
}

#[test]
fn every_figure_is_listed_and_documented() {
    let said = succeed(HOST, &["plot", "--list"]);
    let names: Vec<&str> = said.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 10 && names.contains(&"range-vs-timestep"), "{said}");
    let page = fs::read_to_string(taq_tests::paths::repository().join("docs/plots.md")).unwrap();
    for name in names {
        assert!(page.contains(&format!("\n| `{name}`")), "docs/plots.md lacks {name}");
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |arguments: &str, expected: &[&str]| {
        refused(&run(), &format!("{arguments} --out {}", out.display()), expected);
    };
    refused(
        "--layers mm0.img.mlp.fc3",
        &["--layers: there is no layer `mm0.img.mlp.fc3`", "did you mean `mm0.img.mlp.fc", "`all`"],
    );
    refused("--layers mm_17_img", &["there is no layer `mm_17_img`"]);
    refused(
        "--snapshot-steps 0 28",
        &["--snapshot-steps: step 28 was not observed; observed are 0, 1, 2, 3"],
    );
    refused("--figures bit", &["--figures: there is no figure `bit`; did you mean `bits`?", "loss-curves"]);
    refused("--figures bits --quant-config gone.json", &["cannot read `gone.json`"]);
    let manifest = format!("{}/manifest.json", run());
    refused(&format!("--quant-config {manifest}"), &["manifest.json", "expected format"]);
    assert!(!out.exists(), "nothing is written before a request is understood");
}

#[test]
fn stages_that_are_missing_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = folder.path().join("nothing");
    refused(
        nothing.to_str().unwrap(),
        "",
        &["plot needs statistics, a plan or rounded weights", "taq calibrate"],
    );
    assert!(!nothing.exists());
    let empty = folder.path().to_str().unwrap();
    refused(empty, "", &["plot needs statistics, a plan or rounded weights", "taq observe"]);
    refused(empty, "--figures heatmap-mean", &["plot needs statistics of the activations", "taq observe"]);
    refused(empty, "--figures bits", &["plot needs a quantization plan", "taq decide"]);
    refused(empty, "--figures integers", &["plot needs rounded weights", "taq round"]);

    let (_folder, run) = copied();
    let step = run.join("activations/timestep_stats/step_2_index.json");
    fs::remove_file(step).unwrap();
    refused(run.to_str().unwrap(), "", &["plot needs the statistics of step 2", "taq observe"]);
}

#[test]
fn damage_is_named_with_its_file() {
    let (_folder, run) = copied();
    let npz = run.join("activations/timestep_stats/step_1.npz");
    let bytes = fs::read(&npz).unwrap();
    fs::write(&npz, &bytes[..bytes.len() / 2]).unwrap();
    refused(run.to_str().unwrap(), "", &["step_1.npz", "is not a valid npz file"]);
    fs::write(&npz, bytes).unwrap();

    let plan = run.join("activations/quant_config.json");
    let text = fs::read_to_string(&plan).unwrap();
    let model = text.split("\"model\": \"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(&plan, text.replace(model, "0123")).unwrap();
    refused(run.to_str().unwrap(), "", &["quant_config.json", "for another model"]);
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&run(), &format!("--figures bits --out {}", file.display()), &["cannot create", "file"]);
    // To the administrator no folder is read-only by its permissions, but `/sys` is.
    if cfg!(target_os = "linux") {
        refused(&run(), "--figures bits --out /sys/taq", &["/sys/taq", "may write to"]);
    }
    refused(file.to_str().unwrap(), "", &["cannot open", "it is a file, not a folder"]);
}
