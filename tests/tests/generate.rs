//! `taq generate`: pictures into files of one's own, from images, away from prompts, and what their texts say.

use std::path::Path;

use taq_core::image::Image;
use taq_core::metrics::mse;
use taq_tests::taq::{artifacts, fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

fn paint(folder: &Path, name: &str, flags: &[&str]) -> Image {
    let file = folder.join(name);
    let run = folder.join("no-run");
    let fixed = ["generate", "--full-precision", "--run", run.to_str().unwrap(), "--steps", "6"];
    succeed(HOST, &[&fixed[..], &["--output-image", file.to_str().unwrap()], flags].concat());
    assert!(!run.exists(), "a picture leaves no run folder");
    Image::read_png(&file).unwrap().0
}

fn apart(a: &Image, b: &Image) -> f64 {
    mse(a.pixels(), b.pixels()).unwrap()
}

#[test]
fn a_picture_can_be_painted_again_by_what_its_texts_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let flags = ["--prompt", "red heart", "--negative-prompt", "cat face", "--cfg", "3.5", "--seed", "7"];
    let first = paint(path, "first.png", &flags);
    let texts = Image::read_png(&path.join("first.png")).unwrap().1;
    let text = |key: &str| texts[key].as_str();
    assert_eq!((text("variant"), text("size"), text("sampler")), ("full-precision", "64x64", "euler"));
    let again = paint(
        path,
        "again.png",
        &[
            ["--prompt", text("prompt")],
            ["--negative-prompt", text("negative_prompt")],
            ["--cfg", text("cfg_weight")],
            ["--seed", text("seed")],
            ["--size", text("size")],
        ]
        .concat(),
    );
    assert_eq!(again, first);
    assert_eq!(text("steps"), "6");
    let plain = paint(path, "plain.png", &[&flags[..2], &flags[4..]].concat());
    assert!(apart(&plain, &first) > 1e-3, "the negative prompt does something");
    assert!(!Image::read_png(&path.join("plain.png")).unwrap().1.contains_key("negative_prompt"));
}

#[test]
fn the_weaker_the_change_the_more_of_the_start_image_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let heart = paint(path, "heart.png", &["--prompt", "red heart"]);
    let start = path.join("heart.png");
    let from = |strength: &str| {
        let flags = ["--prompt", "cat face", "--img2img", start.to_str().unwrap(), "--strength", strength];
        apart(&paint(path, "from.png", &flags), &heart)
    };
    let (weak, strong) = (from("0.01"), from("0.8"));
    assert!(weak < 0.2 * strong, "{weak} {strong}");
    // At full strength, nothing but noise is there at the beginning.
    let free = paint(path, "free.png", &["--prompt", "cat face"]);
    let flags = ["--prompt", "cat face", "--img2img", start.to_str().unwrap(), "--strength", "1"];
    assert!(apart(&paint(path, "from.png", &flags), &free) < 1e-12);

    let run = path.join("no-run");
    let refused = ["generate", "--full-precision", "--run", run.to_str().unwrap(), "--output-image", "x.png"];
    let size = ["--img2img", start.to_str().unwrap(), "--size", "32"];
    let (code, message) = fail(HOST, &[&refused[..], &size].concat());
    assert!(folded(&message).contains("the start image has 64 64 pixels"), "{message}");
    assert_eq!(code, 2);
}

#[test]
fn several_pictures_are_numbered_and_a_run_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let run = run.to_str().unwrap();
    for stage in [
        &["calibrate", "--num-images", "2", "--steps", "3"][..],
        &["observe"],
        &["decide"],
        &["round", "--rounder", "nearest"],
    ] {
        succeed(HOST, &[stage, &["--run", run]].concat());
    }
    let before = artifacts(Path::new(run));
    let prompts = ["--prompt", "red heart", "--prompt", "cat face"];
    let file = folder.path().join("a.png");
    let file = file.to_str().unwrap();
    let said = succeed(HOST, &[&["generate", "--run", run, "--output-image", file][..], &prompts].concat());
    assert_eq!(said.lines().count(), 2, "{said}");
    for index in 0..2 {
        let path = folder.path().join(format!("a_000{index}.png"));
        assert_eq!(Image::read_png(&path).unwrap().1["variant"], "quantized");
    }
    let compared = ["generate", "--run", run, "--output-image", file, "--compare", "--diff-stats"];
    let said = succeed(HOST, &[&compared[..], &prompts].concat());
    // Nearest and quantized, two images each: the same weights here, and so the same figures.
    let rows: Vec<Vec<&str>> =
        said.lines().filter(|l| l.contains(" dB ")).map(|l| l.split_whitespace().skip(1).collect()).collect();
    assert_eq!(rows.len(), 4, "{said}");
    assert_eq!(rows[..2], rows[2..]);
    let sheet = Image::read_png(Path::new(file)).unwrap().0;
    assert!(sheet.height() > 3 * 64 && sheet.width() > 2 * 64);
    assert_eq!(artifacts(Path::new(run)), before);
}
