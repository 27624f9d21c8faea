//! Against images and latents made with diffusers (tests/golden/README.md).

use std::fs;
use std::path::Path;

use super::*;
use crate::models::sd3::source::{ModelFiles, T5};
use crate::models::sd3::testing::{self, Golden, relative_error, repository};

/// Relative L2 error that two fp32 implementations may have.
const TOLERANCE: f64 = 1e-5;

fn assert_close(found: &Array, expected: &Array, what: &str) {
    testing::assert_close(found, expected, TOLERANCE, what);
}

/// The golden images are what the decoder gives, about −1..1.
fn displayed(image: &Array) -> Array {
    let image = image.multiply(scalar(0.5)).unwrap().add(scalar(0.5)).unwrap();
    ops::clip(image, (0.0, 1.0)).unwrap()
}

fn vae(source: Option<&Path>) -> Vae {
    let source = source.map(|s| s.to_str().unwrap());
    Vae::load(&ModelFiles::resolve(source, T5::Off).unwrap().vae).unwrap()
}

#[test]
fn both_layouts_agree_with_diffusers() {
    for variant in ["tiny-sd3", "tiny-sd35"] {
        let golden = Golden::open(&format!("{variant}/golden.safetensors"));
        for file in ["", "single_file.safetensors"] {
            let vae = vae(Some(&repository("tests/golden").join(variant).join(file)));
            assert_eq!((vae.factor(), vae.latent_channels()), (8, 16));
            let what = format!("{variant}/{file}");

            let found = vae.decode(&golden.nhwc("latent_nchw")).unwrap();
            assert_close(&found, &displayed(&golden.nhwc("vae_decode_nchw")), &format!("{what}: decode"));

            let image = golden.nhwc("image_nchw");
            let mean = golden.nhwc("vae_encode_mean");
            assert_close(&vae.encoder.forward(&image).unwrap(), &mean, &format!("{what}: encode"));
        }
    }
}

#[test]
fn emoji_images_agree_with_diffusers() {
    let golden = Golden::open("emoji_sd3.safetensors");
    let vae = vae(None);
    assert_eq!(vae.factor(), 4);
    let trajectory = golden.get("trajectory_cfg4_28");
    let last = trajectory.split_equal(trajectory.dim(0), 0).unwrap().pop().unwrap();
    let last = last.squeeze_axes(&[0]).unwrap().transpose_axes(&[0, 2, 3, 1]).unwrap();
    let image = golden.nhwc("image_cfg4_28_nchw");
    let decoded = vae.decode(&last).unwrap();
    assert_close(&decoded, &displayed(&image), "decode");
    // The golden encoding is of the image clipped to −1..1.
    let clipped = ops::clip(&image, (-1.0, 1.0)).unwrap();
    assert_close(&vae.encoder.forward(&clipped).unwrap(), &golden.nhwc("vae_encode_mean"), "encode");
    // The way back: what the transformer saw, up to the autoencoder's own loss.
    let error = relative_error(&vae.encode(&decoded).unwrap(), &last);
    assert!(error < 0.3, "{error}");
}

#[test]
fn many_images_are_computed_in_parts() {
    let vae = vae(Some(&repository("tests/golden/tiny-sd3")));
    let two = Golden::open("tiny-sd3/golden.safetensors").nhwc("latent_nchw");
    // 34 images of 128×128: three parts.
    let many = ops::concatenate(&[&two; 17], 0).unwrap();
    let found = vae.decode(&many).unwrap().split_equal(17, 0).unwrap();
    let expected = vae.decode(&two).unwrap();
    for part in [0, 8, 16] {
        assert!(relative_error(&found[part], &expected) < 1e-6);
    }
}

#[test]
fn other_shapes_are_refused() {
    let vae = vae(None);
    let zeros = |shape: &[i32]| ops::zeros::<f32>(shape).unwrap();
    for shape in [&[1, 16, 16, 4][..], &[16, 16, 16], &[1, 0, 16, 16]] {
        let error = vae.decode(&zeros(shape)).unwrap_err();
        assert_eq!(error.code(), "taq::shape");
        assert!(error.to_string().contains("[batch, h, w, 16]"), "{error}");
    }
    for shape in [&[1, 64, 66, 3][..], &[1, 64, 64, 4], &[64, 64, 3]] {
        let error = vae.encode(&zeros(shape)).unwrap_err();
        assert!(error.to_string().contains("a multiple of 4"), "{error}");
    }
}

#[test]
fn bad_configurations_are_named() {
    let files = ModelFiles::resolve(None, T5::Off).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let config = temp.path().join("config.json");
    let component = Component { config: Some(config.clone()), ..files.vae.clone() };
    let text = fs::read_to_string(files.vae.config.unwrap()).unwrap();
    for (from, to, expected) in [
        ("\"silu\"", "\"gelu\"", "unknown variant `gelu`"),
        ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "unknown variant `AttnDownEncoderBlock2D`"),
        ("\"norm_num_groups\": 16", "\"norm_num_groups\": 5", "5 groups do not divide 32 channels"),
        ("\"norm_num_groups\": 16", "\"norm_num_groups\": 0", "`norm_num_groups` is 0"),
        ("\"use_quant_conv\": false", "\"use_quant_conv\": true", "use_quant_conv"),
        ("    96\n", "    96, 96\n", "4 levels"),
        ("0.857792", "0.0", "`scaling_factor` is 0"),
        ("\"out_channels\": 3", "\"out_channels\": 4", "3 channels"),
        (
            "\"latent_channels\": 16",
            "\"latent_channels\": 8",
            "decoder.conv_in.weight: expected [96, 8, 3, 3]",
        ),
        ("{", "[", "line"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&config, text.replacen(from, to, if from == "DownEncoderBlock2D" { 1 } else { 9 }))
            .unwrap();
        let error = Vae::load(&component).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
