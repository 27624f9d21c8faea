//! Reports: what is in the file, that nothing in it can do harm, and that it works in a browser by pointer and keyboard.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Value, json};
use taq_core::image::Image;
use taq_tests::chromium::Browser;
use taq_tests::taq::{fail, folded, succeed};
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");
/// A prompt that would take the page over if it were written as it is.
const HOSTILE: &str = "</script><img src=x onerror=\"document.title='taken'\"><!-- & 'a'";

/// A run of all stages but `sensitivity`, two blocks rounded.
static RUN: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("small & <run>");
    let stage = |arguments: &[&str]| {
        let folder = ["--run", run.to_str().unwrap()];
        succeed(HOST, &arguments.iter().copied().chain(folder).collect::<Vec<_>>())
    };
    let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
    stage(&words("calibrate --num-images 2 --num-steps 4"));
    stage(&["observe"]);
    stage(&["decide"]);
    stage(&words("round --iters 201 --batch-size 2 --rows 4 --held-out-rows 2 --blocks mm0,mm1"));
    stage(&["generate", "--prompt", HOSTILE, "--prompt", "red heart", "--prompt", "sloth"]);
    (folder, run)
});

fn report(run: &Path, arguments: &[&str]) -> String {
    let command = ["report", "--run", run.to_str().unwrap()];
    succeed(HOST, &command.into_iter().chain(arguments.iter().copied()).collect::<Vec<_>>())
}

/// The report of [`RUN`] in a folder of its own.
fn written() -> (TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/report.html");
    report(&RUN.1, &["--out", path.to_str().unwrap()]);
    let html = fs::read_to_string(&path).unwrap();
    (folder, path, html)
}

/// The values of an attribute.
fn attribute<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    html.split(begin.as_str()).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// The page without its script: what is said about the run.
fn markup(html: &str) -> String {
    let (before, script) = html.split_once("<script>").unwrap();
    let after = script.split_once("</script>").unwrap().1;
    let (head, style) = before.split_once("<style>").unwrap();
    format!("{head}{}{after}", style.split_once("</style>").unwrap().1)
}

#[test]
fn one_file_holds_every_section_and_loads_nothing() {
    let (_folder, _, html) = written();
    let markup = markup(&html);
    for section in ["scores", "images", "plan", "layers", "rounding", "costs", "settings"] {
        assert!(markup.contains(&format!("<section id=\"run0-{section}\"")), "no section {section}");
    }
    assert!(!markup.contains("run0-sensitivities"));
    let sources = attribute(&markup, "src");
    // Three prompts in full precision, to nearest, and quantized.
    assert_eq!(sources.iter().filter(|s| s.starts_with("data:image/png;base64,iVBOR")).count(), 9);
    assert_eq!(sources.len(), 9);
    assert!(attribute(&markup, "href").iter().all(|target| target.starts_with('#')));
    assert!(!markup.contains("url(") && !markup.contains("<link") && !markup.contains("<iframe"));
    assert!(markup.contains("default-src 'none'; img-src data:"));
    assert!(!markup.contains("script-src 'unsafe"), "only the one script may run");
}

/// What the script draws, against the files of the run.
#[test]
fn what_is_drawn_is_what_the_run_holds() {
    let (_folder, _, html) = written();
    let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    let run = &data[0];
    let read =
        |path: &str| -> Value { serde_json::from_slice(&fs::read(RUN.1.join(path)).unwrap()).unwrap() };
    let near = |drawn: &Value, held: f64| {
        let drawn = drawn.as_f64().unwrap();
        assert!((drawn - held).abs() <= 1e-3 * held.abs(), "{drawn} is drawn, {held} is held");
    };
    let (plan, weights) = (read("activations/quant_config.json"), read("quantized_weights/config.json"));
    let layers = run["layers"].as_array().unwrap();
    assert_eq!((layers.len(), run["steps"].as_array().unwrap().len()), (69, 4));
    for (x, step) in run["steps"].as_array().unwrap().iter().enumerate() {
        let step = step[0].as_u64().unwrap().to_string();
        let index = read(&format!("activations/timestep_stats/step_{step}_index.json"));
        for (y, layer) in layers.iter().map(|l| l.as_str().unwrap()).enumerate() {
            let scalars = |field: &str| index[layer][field].as_f64().unwrap();
            near(&run["maps"][0]["rows"][y][x], scalars("tensor_max") - scalars("tensor_min"));
            near(&run["maps"][1]["rows"][y][x], scalars("tensor_absmax"));
            let input = &run["inputs"]["all"][run["inputs"]["of"][y].as_u64().unwrap() as usize];
            for (row, field) in [(0, "tensor_min"), (3, "hist_p50"), (5, "hist_p999"), (6, "tensor_max")] {
                near(&input["quantiles"][row][x], scalars(field));
            }
            let grid = &plan["per_timestep"][&step][layer];
            assert_eq!(run["maps"][6]["rows"][y][x].as_f64(), grid["bits"].as_f64());
            near(&run["grids"][y][x]["absmax"], grid["absmax"].as_f64().unwrap());
        }
    }
    for (drawn, held) in
        run["blocks"].as_array().unwrap().iter().zip(weights["block_metrics"].as_array().unwrap())
    {
        assert_eq!(drawn["name"], held["block_name"]);
        near(&drawn["chosen"], held["final_loss"].as_f64().unwrap());
        assert_eq!(drawn["losses"].as_array().unwrap().len(), 3);
    }
    let rounded: Vec<&Value> = run["integers"].as_array().unwrap().iter().filter(|i| !i.is_null()).collect();
    assert_eq!(rounded.len(), 24);
    for integers in rounded {
        let shares: f64 = integers["shares"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-3, "{integers}");
    }
}

#[test]
fn hostile_text_is_inert() {
    let (_folder, _, html) = written();
    assert!(!html.contains("<img src=x") && !html.contains("small & <run>"));
    assert_eq!(html.matches("</script>").count(), 2, "the data and the script");
    assert!(html.contains("&#60;img src=x onerror=&#34;document.title=&#39;taken&#39;&#34;&#62;"));
    assert!(html.contains("small &#38; &#60;run&#62;"));
}

#[test]
fn the_file_is_the_same_every_time_and_lies_in_the_run() {
    let (_folder, _, html) = written();
    let said = report(&RUN.1, &[]);
    let path = RUN.1.join("report.html");
    assert!(said.contains(&format!("Report: {} (", path.display())), "{said}");
    assert!(said.contains("Left out: sensitivities; run `taq sensitivity --run"), "{said}");
    assert_eq!(fs::read_to_string(path).unwrap(), html);
}

#[test]
fn stages_that_are_not_done_are_left_out_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("begun");
    succeed(HOST, &["calibrate", "--num-images", "1", "--num-steps", "2", "--run", run.to_str().unwrap()]);
    let said = report(&run, &[]);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    for (stage, section) in
        [("observe", "layers"), ("decide", "plan"), ("round", "rounding"), ("generate", "images")]
    {
        assert!(said.contains(&format!("run `taq {stage} --run ")), "{said}");
        assert!(html.contains(&format!("run <code>taq {stage} --run begun</code>")), "{stage}");
        assert!(!html.contains(&format!("<section id=\"run0-{section}\"")), "{section}");
    }
    assert!(!said.contains("calibrate") && html.contains("<section id=\"run0-costs\""));
}

#[test]
fn a_pipeline_ends_with_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, run) = (folder.path().join("p.toml"), folder.path().join("run"));
    fs::write(&manifest, "output = \"unused\"\n[calibrate]\nnum_images = 1\nnum_steps = 2\n").unwrap();
    let arguments = ["run", manifest.to_str().unwrap(), "--output", run.to_str().unwrap(), "--report"];
    let said = succeed(HOST, &arguments);
    assert!(said.contains("Report: ") && run.join("report.html").exists(), "{said}");
}

#[test]
fn images_are_as_many_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.html");
    report(&RUN.1, &["--images", "2", "--out", path.to_str().unwrap()]);
    let html = fs::read_to_string(&path).unwrap();
    assert_eq!(html.matches("src=\"data:image/png").count(), 6);
    assert!(html.contains("2 of 3 prompts"));
    report(&RUN.1, &["--images", "0", "--out", path.to_str().unwrap()]);
    assert!(!fs::read_to_string(&path).unwrap().contains("data:image/png"));
}

#[test]
fn two_runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let path = other.to_str().unwrap();
    succeed(HOST, &["calibrate", "--num-images", "1", "--num-steps", "4", "--run", path]);
    let out = folder.path().join("both.html");
    report(&RUN.1, &["--run", path, "--out", out.to_str().unwrap()]);
    let html = fs::read_to_string(&out).unwrap();
    assert!(html.contains("2 runs compared") && html.contains("<article id=\"run1\""));
    assert!(html.contains("<code>round: rounder.name</code>"));
    // What is the same in both is not said to differ.
    assert!(!html.contains("<code>calibrate: num_steps</code>"));
}

#[test]
fn what_cannot_be_reported_is_said_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], expected: &[&str]| {
        let (code, stderr) = fail(HOST, arguments);
        let message = folded(&stderr);
        assert_eq!(code, 2, "{stderr}");
        for part in expected {
            assert!(message.contains(part), "{arguments:?} should say “{part}”:\n{stderr}");
        }
    };
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    refused(&["report", "--run", &path("none")], &["report needs results of a run", "taq calibrate"]);
    assert!(!folder.path().join("none").exists());
    fs::create_dir(folder.path().join("empty")).unwrap();
    refused(&["report", "--run", &path("empty")], &["report needs results of a run"]);
    let run = RUN.1.to_str().unwrap();
    refused(&["report", "--run", run, "--run", run], &["named twice"]);
    fs::write(folder.path().join("empty/report.json"), "{\"format\": 1}").unwrap();
    refused(&["report", "--run", &path("empty")], &["report.json"]);
    assert!(!folder.path().join("empty/report.html").exists());
}

/// An image that is no PNG file, or is gone, is named.
#[test]
fn damaged_images_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let image = run.join("generated/nearest/0001.png");
    for (name, copy) in [("report.json", run.join("report.json")), ("generated", run.join("generated"))] {
        copy_all(&RUN.1.join(name), &copy);
    }
    fs::write(&image, "<svg onload=alert(1)>").unwrap();
    let (code, stderr) = fail(HOST, &["report", "--run", run.to_str().unwrap()]);
    assert!(code == 2 && folded(&stderr).contains("expected a PNG file"), "{stderr}");
    fs::remove_file(&image).unwrap();
    let (_, stderr) = fail(HOST, &["report", "--run", run.to_str().unwrap()]);
    assert!(folded(&stderr).contains("0001.png"), "{stderr}");
}

fn copy_all(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            copy_all(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// Opens the report; `None` without Chromium.
fn browser(width: u32, dark: bool) -> Option<(TempDir, Browser)> {
    let mut browser = Browser::start()?;
    let (folder, path, _) = written();
    browser.window(width, 900, dark);
    browser.open(&path);
    browser.settle();
    Some((folder, browser))
}

/// The shares of pixels with colours near some: those of a map, and the page's own.
fn coloured(png: &[u8], colours: &[[u8; 3]]) -> Vec<usize> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    fs::write(&path, png).unwrap();
    let (image, _) = Image::read_png(&path).unwrap();
    let near = |pixel: &[f32], colour: &[u8; 3]| {
        pixel.iter().zip(colour).all(|(p, c)| (p * 255.0 - f32::from(*c)).abs() < 3.0)
    };
    colours.iter().map(|c| image.pixels().chunks_exact(3).filter(|p| near(p, c)).count()).collect()
}

#[test]
fn the_page_is_drawn_without_complaint_or_request() {
    for dark in [false, true] {
        let Some((_folder, mut browser)) = browser(1300, dark) else { return };
        assert_eq!(browser.complaints(), Vec::<String>::new());
        assert_eq!(browser.requests().len(), 1, "{:?}", browser.requests());
        assert_eq!(browser.evaluate("document.title"), json!("taq report: small & <run>"));
        assert_eq!(browser.evaluate("document.querySelectorAll('img[src=x]').length"), json!(0));
        // The prompt is there, as text.
        let shown = format!("document.querySelector('.pick').textContent === {}", json!(HOSTILE));
        assert_eq!(browser.evaluate(&shown), json!(true));
        let charts = browser.evaluate("document.querySelectorAll('.chart canvas').length");
        // Values over σ, histogram, channels, integers, loss of the block; held-out errors and losses of all blocks.
        assert_eq!(charts, json!(7));
        let png = browser.screenshot(true);
        let page = if dark { [20, 23, 26] } else { [255, 255, 255] };
        let blue = if dark { [86, 180, 233] } else { [0, 114, 178] };
        let found = coloured(&png, &[[253, 231, 37], [68, 1, 84], blue, page]);
        assert!(found[0] > 300 && found[1] > 300 && found[2] > 2000, "{found:?}");
        assert!(found[3] > 500_000, "{found:?}");
    }
}

#[test]
fn the_slider_obeys_the_keyboard_and_the_pointer() {
    let Some((_folder, mut browser)) = browser(1300, false) else { return };
    let seen = "getComputedStyle(document.querySelector('.over')).clipPath";
    browser.evaluate("document.querySelector('.handle').focus()");
    let before = browser.evaluate(seen);
    for _ in 0..10 {
        browser.press("ArrowRight");
    }
    assert_eq!(browser.evaluate("document.querySelector('.handle').value"), json!("60"));
    assert_ne!(browser.evaluate(seen), before);
    browser.press("Home");
    assert!(browser.evaluate(seen).as_str().unwrap().contains("100%"), "nothing of the left image is left");
    let place = browser.evaluate(
        "(() => { const e = document.querySelector('.compare'); e.scrollIntoView({behavior: 'instant'}); \
         const b = e.getBoundingClientRect(); return [b.left + b.width / 4, b.top + b.height / 2]; })()",
    );
    browser.click(place[0].as_f64().unwrap(), place[1].as_f64().unwrap());
    assert_eq!(browser.evaluate("document.querySelector('.handle').value"), json!("25"));
    // Another prompt, another variant.
    let source = "document.querySelector('.under').src";
    let (first, caption) = (browser.evaluate(source), "document.querySelector('.caption').textContent");
    browser.evaluate("document.querySelector('.viewer .next').focus()");
    browser.press("Enter");
    assert!(browser.evaluate(caption).as_str().unwrap().starts_with("red heart"));
    let second = browser.evaluate(source);
    assert_ne!(first, second);
    let choose = "(() => { const s = document.querySelector('.right'); s.value = 1; \
                  s.dispatchEvent(new Event('change')); })()";
    browser.evaluate(choose);
    assert_ne!(browser.evaluate(source), second);
    assert!(browser.evaluate(caption).as_str().unwrap().contains("right nearest ("));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_cell_of_the_map_opens_its_layer() {
    let Some((_folder, mut browser)) = browser(1300, false) else { return };
    let open = "document.querySelector('.layer h3').textContent + ', ' + document.querySelector('.layer output').textContent";
    browser.evaluate("document.querySelector('.field canvas').focus()");
    // The cursor begins at the layer that is open; the first layer is at least at the top of it.
    for _ in 0..80 {
        browser.press("ArrowUp");
    }
    browser.press("Home");
    browser.press("ArrowRight");
    browser.press("ArrowDown");
    browser.press("Enter");
    let opened = browser.evaluate(open);
    assert!(opened.as_str().unwrap().starts_with("mm0.img.attn.k_proj, step 1,"), "{opened}");
    assert_eq!(browser.evaluate("document.activeElement.className"), json!("layer"));
    // The last cell of the first row, by the pointer: it ends where the row's colours do.
    let place = browser.evaluate(
        "(() => { const e = document.querySelector('.field canvas'); e.scrollIntoView({behavior: 'instant'}); \
         const row = e.getContext('2d').getImageData(0, 3, e.width, 1).data; \
         let x = e.width - 1; while (row[4 * x + 3] === 0) x -= 1; \
         const b = e.getBoundingClientRect(); return [b.left + x - 5, b.top + 3]; })()",
    );
    browser.click(place[0].as_f64().unwrap(), place[1].as_f64().unwrap());
    let opened = browser.evaluate(open);
    assert!(opened.as_str().unwrap().starts_with("mm0.img.attn.q_proj, step 3,"), "{opened}");
    let tip = browser.evaluate("document.querySelector('.map .tip').textContent");
    assert!(tip.as_str().unwrap().starts_with("mm0.img.attn.q_projstep 3, σ = 0.00893: "), "{tip}");
    // Every map can be shown.
    let maps = browser.evaluate(
        "[...document.querySelectorAll('.map select option')].map((option, i) => { \
         const s = document.querySelector('.map select'); s.value = i; s.dispatchEvent(new Event('change')); \
         return option.textContent; }).join()",
    );
    let expected =
        "Range,Largest magnitude,Reach of outliers,Mean,Standard deviation,Negative values,Bits of the plan";
    assert_eq!(maps, json!(expected));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Two layers' sensitivities in a copy of the run.
#[test]
fn sensitivities_are_a_map_that_opens_layers() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("measured");
    copy_all(&RUN.1, &run);
    let entry = |id: &str, weight: bool, bits: u8, error: f64| {
        let errors = json!({"velocity": {"all": error, "buckets": {}}});
        json!({"id": id, "weight": weight, "bits": bits, "measured": errors, "estimated": errors})
    };
    let document = json!({
        "format": "taq.sensitivities.v1", "model": "m", "num_images": 4, "sigma_map": {"0": 1.0},
        "bucket_definitions": {}, "cfg_weight": 4.0, "probes": 4,
        "entries": [
            entry("mm0.img.attn.q_proj", true, 2, 0.01), entry("mm0.img.attn.q_proj", false, 4, 0.0),
            entry("mm0.img.attn.k_proj", true, 2, 0.1), entry("mm0.img.attn.k_proj", false, 4, 0.001),
        ],
        "rank_correlation": [{"weight": true, "bits": 2, "rho": 0.5}],
    });
    fs::write(run.join("activations/sensitivities.json"), document.to_string()).unwrap();
    report(&run, &[]);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    // The most sensitive first, in dB.
    let rows = "<tr><th scope=\"row\">mm0.img.attn.k_proj</th><td>−10.0 dB</td><td>−30.0 dB</td></tr>\n\
                <tr><th scope=\"row\">mm0.img.attn.q_proj</th><td>−20.0 dB</td><td>none</td></tr>";
    assert!(html.contains(rows) && html.contains("<td>0.500</td><td></td>"));
    let Some(mut browser) = Browser::start() else { return };
    browser.window(1300, 900, false);
    browser.open(&run.join("report.html"));
    browser.evaluate("document.querySelector('[data-kind=sensitivity] .field canvas').focus()");
    for _ in 0..80 {
        browser.press("ArrowUp");
    }
    browser.press("ArrowDown");
    let said = "document.querySelector('[data-kind=sensitivity] .unseen').textContent";
    assert_eq!(browser.evaluate(said), json!("mm0.img.attn.k_proj, W2: 0.1"));
    browser.press("Enter");
    assert_eq!(
        browser.evaluate("document.querySelector('.layer h3').textContent"),
        json!("mm0.img.attn.k_proj")
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_narrow_screen_needs_no_sideways_scrolling() {
    let Some((_folder, mut browser)) = browser(360, false) else { return };
    let width = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)";
    assert_eq!(browser.evaluate(width), json!(360));
    // Neither do things stick out that cannot be scrolled to.
    let outside = "[...document.querySelectorAll('.viewer, .map canvas, .chart, .layer, select, summary, h1, h2')] \
                   .filter((e) => e.getBoundingClientRect().right > 361).map((e) => e.className || e.tagName).join()";
    assert_eq!(browser.evaluate(outside), json!(""));
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })");
    assert_eq!(browser.evaluate(width), json!(360));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn without_scripts_the_tables_and_images_are_there() {
    let Some((_folder, mut browser)) = browser(1000, false) else { return };
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    let (_kept, path, _) = written();
    browser.open(&path);
    let node = browser.call("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
    let mut shown = |selector: &str| -> bool {
        let found = browser.call("DOM.querySelector", json!({"nodeId": node, "selector": selector}));
        let computed = browser.call("CSS.getComputedStyleForNode", json!({"nodeId": found["nodeId"]}));
        let display = computed["computedStyle"].as_array().unwrap().iter().find(|p| p["name"] == "display");
        display.unwrap()["value"] != "none"
    };
    assert!(shown(".strip img") && shown(".nojs") && shown(".numbers"));
    assert!(!shown(".viewer") && !shown(".explorer") && !shown(".pick"));
}
