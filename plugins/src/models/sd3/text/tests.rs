//! Against tensors made with transformers and diffusers (tests/golden/README.md).

use std::fs;
use std::path::Path;

use super::*;
use crate::models::sd3::testing::{self, Golden, relative_error, repository};

/// Relative L2 error that two fp32 implementations may have.
const TOLERANCE: f64 = 1e-5;

/// Token ids of a golden file, which its loader does not read: it has I32 from the safetensors crate itself.
fn ids(path: &str, name: &str) -> (Vec<i32>, usize) {
    let bytes = fs::read(repository("tests/golden").join(path)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let ids = tensor.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
    (ids, tensor.shape()[1])
}

fn assert_close(found: &Array, expected: &Array, what: &str) {
    testing::assert_close(found, expected, TOLERANCE, what);
}

fn tiny(variant: &str, t5: T5) -> TextEncoders {
    let folder = repository("tests/golden").join(variant);
    let files = ModelFiles::resolve(folder.to_str(), t5).unwrap();
    TextEncoders::load(&files, t5, 96, 80).unwrap()
}

fn emoji() -> TextEncoders {
    let files = ModelFiles::resolve(None, T5::Auto).unwrap();
    TextEncoders::load(&files, T5::Auto, 384, 320).unwrap()
}

#[test]
fn encoders_agree_with_transformers() {
    for variant in ["tiny-sd3", "tiny-sd35"] {
        let encoders = tiny(variant, T5::Auto);
        let path = format!("{variant}/golden.safetensors");
        let expected = Golden::open(&path);
        let (clip, length) = ids(&path, "clip_ids");
        let (t5, t5_length) = ids(&path, "t5_ids");
        let ids = TokenIds { l: clip.clone(), g: clip, length, t5: Some((t5.clone(), t5_length)) };

        let (l, g) = encoders.encode_clip(&ids).unwrap();
        assert_close(&l.hidden, &expected.get("clip_l_hidden"), "CLIP-L tokens");
        assert_close(&l.pooled, &expected.get("clip_l_pooled"), "CLIP-L pooled");
        assert_close(&g.hidden, &expected.get("clip_g_hidden"), "CLIP-G tokens");
        assert_close(&g.pooled, &expected.get("clip_g_pooled"), "CLIP-G pooled");

        let (component, config) = encoders.t5.as_ref().unwrap();
        let hidden = T5Encoder::open(component, config).unwrap().encode(&t5, t5_length).unwrap();
        assert_close(&hidden, &expected.get("t5_hidden"), "T5 tokens");

        let found = encoders.encode_ids(&ids).unwrap();
        assert_close(&found.tokens, &expected.get("prompt_embeds"), "tokens");
        assert_close(&found.pooled, &expected.get("pooled"), "pooled");
    }
}

#[test]
fn without_t5_zeros_follow() {
    let encoders = tiny("tiny-sd3", T5::Off);
    assert!(encoders.t5.is_none());
    let path = "tiny-sd3/golden.safetensors";
    let (clip, length) = ids(path, "clip_ids");
    let found = encoders.encode_ids(&TokenIds { l: clip.clone(), g: clip, length, t5: None }).unwrap();
    assert_eq!(found.tokens.shape(), [2, 24, 96]);
    let parts = found.tokens.split_equal(2, 1).unwrap();
    let expected = Golden::open(path).get("prompt_embeds");
    let positions = Array::from_slice(&(0..12).collect::<Vec<i32>>(), &[12]);
    assert_close(&parts[0], &expected.take_axis(positions, 1).unwrap(), "CLIP's tokens");
    assert_eq!(parts[1].abs().unwrap().max(None).unwrap().item_exact::<f32>(), 0.0);
}

#[test]
fn emoji_prompts_agree_with_diffusers() {
    const PATH: &str = "emoji_sd3.safetensors";
    let encoders = emoji();
    let prompts = ["cat face", "red heart", ""];
    let found = encoders.tokenize(&prompts).unwrap();
    assert_eq!((found.l, found.length), ids(PATH, "input_ids_l"));
    assert_eq!((found.g, found.length), ids(PATH, "input_ids_g"));

    let expected = Golden::open(PATH);
    let found = encoders.encode(&["cat face".to_owned(), "red heart".to_owned()]).unwrap();
    assert_close(&found.tokens, &expected.get("prompt_embeds"), "tokens");
    assert_close(&found.pooled, &expected.get("pooled"), "pooled");
    let found = encoders.encode(&[String::new()]).unwrap();
    assert_close(&found.tokens, &expected.get("negative_embeds"), "tokens of the empty prompt");
    assert_close(&found.pooled, &expected.get("negative_pooled"), "pooled embedding of the empty prompt");
}

#[test]
fn equal_prompts_get_equal_rows_in_the_order_asked_for() {
    let encoders = emoji();
    // More distinct prompts than one batch holds, so that joining batches is tested too.
    let many: Vec<String> = (0..40).map(|i| format!("prompt {i}")).collect();
    let alone = encoders.encode(&many[35..36]).unwrap();
    let mixed = ["prompt 35", "prompt 2", "prompt 35"].map(str::to_owned);
    let rows = encoders.encode(&[&many[..], &mixed].concat()).unwrap();
    assert_eq!(rows.tokens.shape(), [43, 48, 384]);
    let row = |x: &Array, i: i32| x.take_axis(Array::from_slice(&[i], &[1]), 0).unwrap();
    for i in [35, 40, 42] {
        assert_close(&row(&rows.tokens, i), &alone.tokens, "tokens");
        assert_close(&row(&rows.pooled, i), &alone.pooled, "pooled");
    }
    assert_eq!(relative_error(&row(&rows.tokens, 41), &row(&rows.tokens, 2)), 0.0);
    assert!(relative_error(&row(&rows.pooled, 41), &alone.pooled) > 0.01);
}

/// A copy of the embedded model's text folders that a test may spoil.
fn copy() -> (tempfile::TempDir, ModelFiles) {
    let temp = tempfile::tempdir().unwrap();
    let mut files = ModelFiles::resolve(None, T5::Auto).unwrap();
    for folder in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
        let to = temp.path().join(folder);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(files.root.join(folder)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
    }
    for (component, folder) in [(&mut files.clip_l, "text_encoder"), (&mut files.clip_g, "text_encoder_2")] {
        let component = component.as_mut().unwrap();
        component.weights = temp.path().join(folder).join("model.safetensors");
        component.config = Some(temp.path().join(folder).join("config.json"));
    }
    files.tokenizer_l = Some(temp.path().join("tokenizer"));
    files.tokenizer_g = Some(temp.path().join("tokenizer_2"));
    files.root = temp.path().to_owned();
    (temp, files)
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

fn load(files: &ModelFiles) -> Result<TextEncoders> {
    TextEncoders::load(files, T5::Auto, 384, 320)
}

#[test]
fn bad_configurations_are_named() {
    for (from, to, expected) in [
        ("\"quick_gelu\"", "\"relu\"", "unknown variant `relu`"),
        ("\"hidden_size\": 128", "\"hidden_size\": 127", "heads do not divide"),
        ("\"hidden_size\": 128", "\"hidden_size\": 0", "`hidden_size` is 0"),
        ("\"hidden_size\": 128", "\"hidden_size\": -1", "invalid value"),
        ("\"vocab_size\": 2048", "\"unknown\": 2048", "missing field `vocab_size`"),
        ("{", "", "line 2"),
    ] {
        let (temp, files) = copy();
        edit(&temp.path().join("text_encoder/config.json"), from, to);
        let error = load(&files).err().unwrap();
        assert_eq!(error.code(), "taq::malformed");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains("config.json"), "{error}");
    }
    let files = ModelFiles::resolve(None, T5::Auto).unwrap();
    assert!(
        TextEncoders::load(&files, T5::Auto, 256, 320).err().unwrap().to_string().contains("320 channels")
    );
    assert!(
        TextEncoders::load(&files, T5::Auto, 384, 300).err().unwrap().to_string().contains("exactly 300")
    );

    let tiny = repository("tests/golden/tiny-sd3");
    let files = ModelFiles::resolve(tiny.to_str(), T5::Auto).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let mut component = files.t5.unwrap();
    let config = temp.path().join("config.json");
    for (from, to, expected) in [
        ("gated-gelu", "relu", "unknown variant `relu`"),
        ("\"d_model\": 96", "\"d_model\": 0", "`d_model` is 0"),
        ("num_buckets\": 32", "num_buckets\": 2", "2 buckets"),
    ] {
        fs::copy(tiny.join("text_encoder_3/config.json"), &config).unwrap();
        component.config = Some(config.clone());
        edit(&config, from, to);
        let error = T5Config::read(&component).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_and_broken_files_are_named() {
    let prompt = ["cat".to_owned()];
    let reason = |files: &ModelFiles| load(files).unwrap().encode(&prompt).unwrap_err();
    let (temp, files) = copy();
    let tokenizer = temp.path().join("tokenizer/tokenizer.json");

    fs::write(&tokenizer, "{\"version\": \"1.0\"").unwrap();
    assert_eq!(reason(&files).code(), "taq::malformed");
    fs::remove_file(&tokenizer).unwrap();
    let error = reason(&files).to_string();
    assert!(error.contains("lacks the tokenizer of CLIP-L") && error.contains("merges.txt"), "{error}");
    let without = ModelFiles { tokenizer_l: None, ..files.clone() };
    assert!(reason(&without).to_string().contains("no folder `tokenizer`"));
    let without = ModelFiles { clip_g: None, ..files };
    assert!(reason(&without).to_string().contains("no text encoders"));

    let (temp, files) = copy();
    edit(&temp.path().join("tokenizer_2/tokenizer_config.json"), "\"!\"", "\"<nothing>\"");
    assert!(reason(&files).to_string().contains("no padding token `<nothing>`"));
    let (temp, files) = copy();
    edit(
        &temp.path().join("text_encoder/config.json"),
        "\"intermediate_size\": 512",
        "\"intermediate_size\": 256",
    );
    let error = reason(&files);
    assert_eq!(error.code(), "taq::weights");
    assert!(error.to_string().contains("mlp.fc1.weight: expected [256, 128], found [512, 128]"), "{error}");
    let (temp, files) = copy();
    let weights = temp.path().join("text_encoder/model.safetensors");
    fs::write(&weights, &fs::read(&weights).unwrap()[..5000]).unwrap();
    assert_eq!(reason(&files).code(), "taq::malformed");
}

#[test]
fn t5_weights_are_checked_before_they_are_read() {
    let tiny = repository("tests/golden/tiny-sd3");
    let files = ModelFiles::resolve(tiny.to_str(), T5::Auto).unwrap();
    let component = files.t5.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let config = temp.path().join("config.json");
    let open = |from: &str, to: &str| {
        fs::copy(tiny.join("text_encoder_3/config.json"), &config).unwrap();
        edit(&config, from, to);
        let component = Component { config: Some(config.clone()), ..component.clone() };
        T5Encoder::open(&component, &T5Config::read(&component)?)
    };
    let Err(Error::Weights { issues, .. }) = open("\"num_layers\": 3", "\"num_layers\": 4") else { panic!() };
    assert_eq!(issues.len(), 9);
    assert!(issues[0].to_string().contains("missing     encoder.block.3."), "{}", issues[0]);
    // A layer that nobody asks for shows at the end.
    let encoder = open("\"num_layers\": 3", "\"num_layers\": 2").unwrap();
    let error = encoder.encode(&[1, 2, 3], 3).unwrap_err().to_string();
    assert!(error.contains("unexpected  encoder.block.2."), "{error}");
    // Ids beyond the vocabulary.
    let encoder = T5Encoder::open(&component, &T5Config::read(&component).unwrap()).unwrap();
    assert!(encoder.encode(&[1, 256], 2).unwrap_err().to_string().contains("the id 256"));
    assert!(encoder.encode(&[-1], 1).is_err());
}
