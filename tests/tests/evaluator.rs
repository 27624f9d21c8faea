//! The evaluator of the embedded model: the numbers of another runtime, and prompt accuracy from end to end.

use std::fs;
use std::path::Path;

use taq_core::artifacts::read_document;
use taq_core::evaluator::Evaluator;
use taq_core::image::Image;
use taq_core::mlx_rs::Array;
use taq_core::pipeline::Report;
use taq_tests::golden::{Golden, assert_near};
use taq_tests::paths::repository;
use taq_tests::taq::{fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");
const SIDE: usize = 64;

fn image(pixel: impl Fn(usize, usize) -> [f32; 3]) -> Image {
    let pixels = (0..SIDE * SIDE).flat_map(|at| pixel(at / SIDE, at % SIDE)).collect();
    Image::new(SIDE, SIDE, pixels).unwrap()
}

/// The images of `tests/golden/evaluator.safetensors`: noise, a yellow disc on white, a gradient.
fn images() -> [Image; 3] {
    let mut state = 1u32;
    let noise: Vec<f32> = (0..SIDE * SIDE * 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        })
        .collect();
    let inside = |y: usize, x: usize| (x as f32 - 31.5).powi(2) + (y as f32 - 31.5).powi(2) < 400.0;
    [
        Image::new(SIDE, SIDE, noise).unwrap(),
        image(|y, x| if inside(y, x) { [1.0, 0.8125, 0.25] } else { [1.0; 3] }),
        image(|y, x| [x as f32 / 64.0, y as f32 / 64.0, 0.5]),
    ]
}

fn evaluator() -> Evaluator {
    Evaluator::open(&repository().join("models/emoji-sd3/evaluator")).unwrap()
}

#[test]
fn features_and_logits_are_those_of_onnxruntime() {
    let (evaluator, golden) = (evaluator(), Golden::open("evaluator.safetensors"));
    let sights = evaluator.look(&images()).unwrap();
    let rows = |row: &dyn Fn(usize) -> Vec<f32>| -> Array {
        let values: Vec<f32> = (0..3).flat_map(row).collect();
        Array::from_slice(&values, &[3, values.len() as i32 / 3])
    };
    assert_near("features", &rows(&|i| sights[i].features.clone()), &golden.tensor("features"), 2e-6);
    assert_near("logits", &rows(&|i| sights[i].logits.clone()), &golden.tensor("logits"), 2e-6);
    assert_eq!(evaluator.labels().classes()[sights[1].class()], "large yellow circle");
    // However many are looked at together.
    let many: Vec<Image> = images().into_iter().cycle().take(19).collect();
    for (i, sight) in evaluator.look(&many).unwrap().iter().enumerate() {
        assert_eq!(sight.class(), sights[i % 3].class());
    }
    let small = Image::new(32, 32, vec![0.0; 32 * 32 * 3]).unwrap();
    let message = evaluator.look(&[small]).unwrap_err().to_string();
    assert!(message.contains("64 × 64 pixels"), "{message}");
}

#[test]
fn every_test_and_calibration_prompt_is_known() {
    let evaluator = evaluator();
    for (file, count) in [("prompts_test.txt", 64), ("prompts_calibration.txt", 256)] {
        let text = fs::read_to_string(repository().join("models/emoji-sd3/evaluator").join(file)).unwrap();
        assert_eq!(
            text.lines().filter(|prompt| !evaluator.labels().classes_of(prompt).is_empty()).count(),
            count
        );
    }
}

fn report(run: &Path) -> Report {
    read_document(&run.join("report.json")).unwrap()
}

#[test]
fn full_precision_paints_what_its_prompts_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let path = run.to_str().unwrap();
    let prompts =
        ["racing car", "Swimmer ", "maldives flag", "parachute", "a lighthouse in a storm, oil painting"];
    let flags = ["--prompt"; 5].iter().zip(prompts).flat_map(|(flag, prompt)| [*flag, prompt]);
    let generate: Vec<&str> =
        ["generate", "--full-precision", "--output", path].into_iter().chain(flags).collect();
    let table = succeed(HOST, &generate);
    assert!(table.contains("100.0 % of 4"), "{table}");
    let evaluator = report(&run).evaluator.unwrap();
    let accuracy = &evaluator.full_precision;
    assert_eq!((accuracy.accuracy, accuracy.judged, accuracy.unknown), (Some(1.0), 4, 1));

    // Another size than the evaluator's: its own is left out, one that was asked for is refused.
    let other = folder.path().join("other");
    let size =
        ["generate", "--full-precision", "--prompt", "red heart", "--image-size", "32", "--steps", "2"];
    let output = ["--output", other.to_str().unwrap()];
    succeed(HOST, &[&size[..], &output].concat());
    assert_eq!(report(&other).evaluator, None);
    let folder = repository().join("models/emoji-sd3/evaluator");
    let asked = ["--evaluator", folder.to_str().unwrap()];
    let (code, message) = fail(HOST, &[&size[..], &output, &asked].concat());
    // Folding takes the × away.
    assert!(folded(&message).contains("it takes images of 64 64 pixels, and these have 32 32"), "{message}");
    assert_eq!(code, 2);
}
