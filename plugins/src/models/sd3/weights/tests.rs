//! Every way in which weights can be wrong, and the layouts.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use mlx_rs::Array;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use taq_core::{Error, WeightIssue};
use tempfile::TempDir;

use super::decode::{oihw_to_ohwi, to_f32};
use super::{Layout, Loader, Part, Rule, Weights};

/// A tensor to write.
struct Tensor(&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(key: &'static str, shape: &[usize], data: &[f32]) -> Tensor {
    Tensor(key, Dtype::F32, shape.to_vec(), data.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// 0, 1, 2, … in the given shape.
fn ramp(key: &'static str, shape: &[usize]) -> Tensor {
    let data: Vec<f32> = (0..shape.iter().product()).map(|i: usize| i as f32).collect();
    f32s(key, shape, &data)
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|Tensor(key, dtype, shape, bytes)| {
        (*key, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

fn file(tensors: &[Tensor]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, tensors);
    (dir, path)
}

fn values(x: &Array) -> Vec<f32> {
    x.contiguous().unwrap().as_slice().to_vec()
}

fn issues(loader: &Loader<'_>) -> Vec<WeightIssue> {
    match loader.finish().unwrap_err() {
        Error::Weights { issues, .. } => issues,
        e => panic!("{e}"),
    }
}

#[test]
fn everything_wrong_is_reported_together_in_the_order_of_names() {
    let (_dir, path) = file(&[
        ramp("block.a", &[2, 3]),
        ramp("block.shape", &[3, 2]),
        ramp("block.extra", &[1]),
        f32s("block.nan", &[3], &[f32::NAN, 1.0, f32::NEG_INFINITY]),
        ramp("buffer.position_ids", &[4]),
    ]);
    let weights = Weights::open(&path).unwrap();
    let loader = Loader::new(&weights);
    let block = loader.scope("block");
    assert_eq!(values(&block.tensor("a", &[2, 3])), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    // Place holders have the shape that was asked for.
    assert_eq!(block.tensor("gone", &[2, 2]).shape(), [2, 2]);
    assert_eq!(block.tensor("shape", &[2, 3]).shape(), [2, 3]);
    block.tensor("nan", &[3]);
    assert!(block.optional("not_there", &[1]).is_none());
    loader.ignore(|key| key.ends_with("position_ids"));
    assert_eq!(
        issues(&loader),
        [
            WeightIssue::Unexpected { key: "block.extra".into() },
            WeightIssue::Missing { key: "block.gone".into(), shape: vec![2, 2] },
            WeightIssue::NotFinite { key: "block.nan".into(), count: 2 },
            WeightIssue::Shape { key: "block.shape".into(), expected: vec![2, 3], found: vec![3, 2] },
        ]
    );
}

/// Both ways to take a tensor round it to nearest, and name numbers that are too large for the type.
#[test]
fn tensors_come_in_the_type_asked_for() {
    use mlx_rs::Dtype as Element;
    let data = [1.0_f32, 0.1, -65519.0, 3.0e-6, 2049.0, 1.0 / 3.0];
    let large = [1.0_f32, 65520.0, -1.0e9];
    let (_dir, path) = file(&[f32s("a", &[2, 3], &data), f32s("large", &[3], &large)]);
    let weights = Weights::open(&path).unwrap();
    for (element, round) in [
        (Element::Float16, (|x| f16::from_f32(x).to_f32()) as fn(f32) -> f32),
        (Element::Bfloat16, |x| bf16::from_f32(x).to_f32()),
        (Element::Float32, |x| x),
    ] {
        let loader = Loader::new(&weights).with_dtype(element);
        for array in [loader.tensor("a", &[2, 3]), loader.deferred("a", &[2, 3])] {
            assert_eq!(array.dtype(), element);
            assert_eq!(values(&array.as_dtype(Element::Float32).unwrap()), data.map(round));
        }
        for take in [Loader::tensor, Loader::deferred] {
            let loader = Loader::new(&weights).with_dtype(element);
            loader.tensor("a", &[2, 3]);
            take(&loader, "large", &[3]);
            match element {
                Element::Float16 => {
                    assert_eq!(issues(&loader), [WeightIssue::TooLarge { key: "large".into(), count: 2 }]);
                }
                _ => loader.finish().unwrap(),
            }
        }
    }
}

#[test]
fn weights_that_fit_are_accepted() {
    let (_dir, path) = file(&[ramp("a", &[2]), ramp("b", &[1])]);
    let weights = Weights::open(&path).unwrap();
    let loader = Loader::new(&weights);
    loader.tensor("a", &[2]);
    assert!(loader.finish().is_err(), "`b` was not asked for");
    assert!(loader.optional("b", &[1]).is_some());
    loader.finish().unwrap();
}

#[test]
fn a_table_reads_another_layout_and_errors_speak_of_the_file() {
    let (_dir, path) = file(&[
        ramp("net.layers.7.qkv.weight", &[6, 2]),
        f32s("net.layers.7.qkv.bias", &[6], &[0.0, 1.0, f32::NAN, 3.0, f32::NAN, f32::NAN]),
        ramp("net.ada.weight", &[4, 1]),
        ramp("net.conv.weight", &[2, 2, 1, 1]),
        ramp("net.conv.bias", &[2]),
        ramp("net.same", &[1]),
        ramp("other.tensor", &[1]),
    ]);
    let weights = Weights::open(&path).unwrap();
    let rows = |index| Part::Rows { index, of: 3 };
    let layout = Layout {
        prefix: "net.".into(),
        rules: vec![
            Rule::new("blocks.*.q", "layers.*.qkv", rows(0)),
            Rule::new("blocks.*.k", "layers.*.qkv", rows(1)),
            Rule::new("blocks.*.v", "layers.*.qkv", rows(2)),
            Rule::new("norm.linear", "ada", Part::SwapHalves),
            Rule::new("proj", "conv", Part::Pointwise),
        ],
    };
    let loader = Loader::with_layout(&weights, layout);
    assert!(loader.contains("blocks.7.k.bias") && !loader.contains("blocks.8.k.bias"));
    let block = loader.scope("blocks").scope("7");
    assert_eq!(values(&block.tensor("q.weight", &[2, 2])), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(values(&block.tensor("k.weight", &[2, 2])), [4.0, 5.0, 6.0, 7.0]);
    assert_eq!(values(&block.tensor("v.weight", &[2, 2])), [8.0, 9.0, 10.0, 11.0]);
    for name in ["q.bias", "k.bias", "v.bias"] {
        block.tensor(name, &[2]);
    }
    assert_eq!(values(&loader.tensor("norm.linear.weight", &[4, 1])), [2.0, 3.0, 0.0, 1.0]);
    assert_eq!(values(&loader.tensor("proj.weight", &[2, 2])), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(values(&loader.tensor("proj.bias", &[2])), [0.0, 1.0]);
    loader.tensor("same", &[1]);
    loader.tensor("blocks.8.v.weight", &[2, 2]);
    // `other.tensor` is not below the prefix, so it is somebody else's.
    assert_eq!(
        issues(&loader),
        [
            WeightIssue::NotFinite { key: "net.layers.7.qkv.bias".into(), count: 3 },
            WeightIssue::Missing { key: "net.layers.8.qkv.weight".into(), shape: vec![6, 2] },
        ]
    );
}

#[test]
fn convolutions_come_out_channels_last() {
    let (o, i, h, w) = (2, 3, 2, 4);
    let (_dir, path) = file(&[ramp("conv.weight", &[o, i, h, w])]);
    let weights = Weights::open(&path).unwrap();
    let conv = Loader::new(&weights).conv("conv.weight", [o, i, h, w]);
    let reference = Array::from_iter((0..48).map(|x| x as f32), &[2, 3, 2, 4]);
    assert_eq!(conv.shape(), [2, 2, 4, 3]);
    assert_eq!(values(&conv), values(&reference.transpose_axes(&[0, 2, 3, 1]).unwrap()));
    assert_eq!(oihw_to_ohwi(&[], [0, 3, 1, 1]), [] as [f32; 0]);
}

#[test]
fn half_precision_is_read_exactly() {
    // Every 16-bit pattern; more than one task's worth, and with an odd tail.
    let patterns: Vec<u16> = (0..=u16::MAX).chain([0x3c00, 0x3f80, 1]).collect();
    let bytes: Vec<u8> = patterns.iter().flat_map(|x| x.to_le_bytes()).collect();
    type ToF32 = fn(u16) -> f32;
    let types: [(Dtype, ToF32); 2] =
        [(Dtype::F16, |x| f16::from_bits(x).to_f32()), (Dtype::BF16, |x| bf16::from_bits(x).to_f32())];
    for (dtype, naive) in types {
        let (values, bad) = to_f32(&bytes, dtype);
        let expected: Vec<f32> = patterns.iter().map(|&x| naive(x)).collect();
        assert_eq!(bad, expected.iter().filter(|x| !x.is_finite()).count(), "{dtype:?}");
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert_eq!(values.len(), expected.len());
        assert!(values.iter().zip(&expected).all(same), "{dtype:?}");
    }
}

#[test]
fn other_number_types_are_refused_by_name() {
    let (_dir, path) = file(&[Tensor("ids", Dtype::I64, vec![1], vec![0; 8])]);
    let weights = Weights::open(&path).unwrap();
    let loader = Loader::new(&weights);
    loader.tensor("ids", &[1]);
    let error = loader.finish().unwrap_err().to_string();
    assert!(error.contains("`ids` is I64") && error.contains("BF16"), "{error}");
}

#[test]
fn files_that_are_no_weights_say_what_they_are() {
    let (dir, path) = file(&[ramp("a", &[64])]);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        let path = dir.path().join("bad.safetensors");
        fs::write(&path, bytes).unwrap();
        match Weights::open(&path).unwrap_err() {
            Error::Malformed { kind: "safetensors file", path: p, reason } if p == path => reason,
            e => panic!("{e:?}"),
        }
    };
    assert!(refused(&whole[..whole.len() - 1]).contains("cut short"));
    assert!(refused(&[&whole[..], &[0]].concat()).contains("bytes after"));
    assert!(refused(&whole[..20]).contains("no header"));
    assert!(refused(b"").contains("no header"));
    assert!(refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n").contains("Git LFS"));
    assert!(refused(&[&7u64.to_le_bytes()[..], b"{\"a\": 1"].concat()).contains("cannot be read"));
    let gone = dir.path().join("gone.safetensors");
    assert!(matches!(Weights::open(&gone), Err(Error::Io { action: "read", path, .. }) if path == gone));
    assert!(matches!(Weights::open(dir.path()), Err(Error::Io { .. })), "a folder is no file");
}

#[test]
fn shards_are_one_set_of_weights() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let index = |map: serde_json::Value| {
        let path = at("model.safetensors.index.json");
        fs::write(&path, serde_json::json!({"metadata": {"total_size": 3}, "weight_map": map}).to_string())
            .unwrap();
        Weights::open(&path)
    };
    write(&at("1.safetensors"), &[ramp("a", &[2])]);
    write(&at("2.safetensors"), &[ramp("b", &[3])]);
    let weights = index(serde_json::json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap();
    assert_eq!(weights.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(values(&Loader::new(&weights).tensor("b", &[3])), [0.0, 1.0, 2.0]);

    let reason = |map| index(map).unwrap_err().to_string();
    let swapped = reason(serde_json::json!({"a": "2.safetensors", "b": "1.safetensors"}));
    assert!(swapped.contains("does not hold `a`"), "{swapped}");
    let outside = reason(serde_json::json!({"a": "../1.safetensors"}));
    assert!(outside.contains("not a plain file name"), "{outside}");
    assert!(reason(serde_json::json!({"a": "3.safetensors"})).contains("3.safetensors"));
    write(&at("2.safetensors"), &[ramp("b", &[3]), ramp("a", &[2])]);
    let twice = reason(serde_json::json!({"a": "1.safetensors", "b": "2.safetensors"}));
    assert!(twice.contains("`a` is also in"), "{twice}");
}
