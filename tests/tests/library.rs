//! A program that uses taq as a library gets the image that `taq generate` makes.

use taq_tests::taq::succeed;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

#[allow(dead_code)]
#[path = "../../plugins/examples/quantized_image.rs"]
mod quantized_image;

#[test]
fn the_example_paints_what_generate_paints() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let taq = |arguments: &[&str]| {
        succeed(HOST, &[arguments, &["--run", run.to_str().unwrap()]].concat());
    };
    taq(&["calibrate", "--num-images", "2", "--num-steps", "3"]);
    let message = quantized_image::paint(&folder.path().join("none"), "x", "x.png".as_ref()).unwrap_err();
    assert!(message.to_string().contains("none"), "{message}");
    taq(&["observe"]);
    taq(&["decide"]);
    taq(&["round", "--rounder", "nearest", "--rows", "2", "--held-out-rows", "1", "--weight-only-bits", "8"]);
    let [ours, theirs] = ["ours.png", "theirs.png"].map(|name| folder.path().join(name));
    quantized_image::paint(&run, "red heart", &ours).unwrap();
    taq(&["generate", "--prompt", "red heart", "--output-image", theirs.to_str().unwrap()]);
    let [ours, theirs] = [ours, theirs].map(|file| taq_core::image::Image::read_png(&file).unwrap().0);
    assert_eq!(ours.pixels(), theirs.pixels());
    assert!(run.join("quantized_weights/weights/weight_only.npz").is_file());
}
