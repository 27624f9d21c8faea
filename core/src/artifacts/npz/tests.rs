use std::fs;
use std::path::Path;
use std::process::Command;

use mlx_rs::{Array, Dtype};

use super::*;
use crate::Error;

fn write_all(path: &Path) {
    write_npz(path, |npz| {
        npz.add("x", &[2, 3], &[0.1f32, -1.0, 2.0, 3.0, 1e-20, f32::INFINITY])?;
        npz.add("double", &[2], &[0.1f64, 1e300])?;
        npz.add("weight_int", &[2, 2], &[-8i8, 7, -128, 127])?;
        npz.add("index", &[3], &[-1i32, 0, i32::MAX])?;
        npz.add("long", &[1], &[i64::MIN])?;
        npz.add("byte", &[2], &[0u8, 255])?;
        npz.add("counts", &[2], &[0u64, u64::MAX])?;
        npz.add("mask", &[2, 1], &[true, false])?;
        npz.add::<f32>("none", &[0, 4], &[])?;
        npz.scalar("sigma", 0.25f32)?;
        npz.scalar("step_index", 7i32)?;
        npz.scalar("is_final", true)
    })
    .unwrap();
}

fn reason(error: Error) -> String {
    match error {
        Error::Malformed { kind: "npz file", reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_type_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/all.npz");
    write_all(&path);
    let npz = Npz::open(&path).unwrap();
    assert_eq!(npz.vec::<f32>("x", &[2, 3]).unwrap(), [0.1, -1.0, 2.0, 3.0, 1e-20, f32::INFINITY]);
    assert_eq!(npz.vec::<f64>("double", &[2]).unwrap(), [0.1, 1e300]);
    assert_eq!(npz.vec::<i8>("weight_int", &[2, 2]).unwrap(), [-8, 7, -128, 127]);
    assert_eq!(npz.vec::<i32>("index", &[3]).unwrap(), [-1, 0, i32::MAX]);
    assert_eq!(npz.vec::<i64>("long", &[1]).unwrap(), [i64::MIN]);
    assert_eq!(npz.vec::<u8>("byte", &[2]).unwrap(), [0, 255]);
    assert_eq!(npz.vec::<u64>("counts", &[2]).unwrap(), [0, u64::MAX]);
    assert_eq!(npz.vec::<bool>("mask", &[2, 1]).unwrap(), [true, false]);
    assert_eq!(npz.read::<f32>("none").unwrap(), Stored { shape: vec![0, 4], data: vec![] });
    assert_eq!(npz.scalar::<f32>("sigma").unwrap(), 0.25);
    assert_eq!(npz.scalar::<i32>("step_index").unwrap(), 7);
    assert!(npz.scalar::<bool>("is_final").unwrap());
    assert!(npz.contains("x") && !npz.contains("y"));
    assert_eq!(npz.names().len(), 12);
    assert!(npz.names().is_sorted());
}

#[test]
fn more_than_one_chunk_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.npz");
    let data: Vec<f64> = (0..100_001).map(f64::from).collect();
    write_npz(&path, |npz| npz.add("x", &[100_001], &data)).unwrap();
    assert_eq!(Npz::open(&path).unwrap().vec::<f64>("x", &[100_001]).unwrap(), data);
}

#[test]
fn the_same_arrays_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.npz"), dir.path().join("b.npz"));
    write_all(&a);
    write_all(&b);
    let bytes = fs::read(&a).unwrap();
    assert_eq!(bytes, fs::read(&b).unwrap());
    // The date in the first local header (bytes 10 to 13) is the earliest that zip knows, 1980-01-01 00:00.
    assert_eq!(bytes[10..14], [0, 0, 0x21, 0]);
}

#[test]
fn a_failing_writer_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    write_npz(&path, |npz| npz.scalar("x", 1i32)).unwrap();
    let result = write_npz(&path, |npz| {
        npz.scalar("x", 2i32)?;
        Err(Error::Cancelled)
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(Npz::open(&path).unwrap().scalar::<i32>("x").unwrap(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn wrong_requests_name_file_and_array() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    write_npz(&path, |npz| {
        npz.add("x", &[2, 3], &[0.0f32; 6])?;
        npz.scalar("sigma", 0.5f64)
    })
    .unwrap();
    let npz = Npz::open(&path).unwrap();
    assert_eq!(reason(npz.read::<f32>("y").unwrap_err()), "no array `y`; it has `sigma`, `x`");
    assert_eq!(reason(npz.read::<i8>("x").unwrap_err()), "array `x`: expected i8, found f32");
    assert_eq!(
        reason(npz.vec::<f32>("x", &[3, 2]).unwrap_err()),
        "array `x`: expected shape [3, 2], found [2, 3]"
    );
    assert_eq!(reason(npz.scalar::<f32>("x").unwrap_err()), "array `x`: expected shape [], found [2, 3]");
    assert_eq!(
        reason(npz.array("sigma").unwrap_err()),
        "array `sigma`: expected f32, found f64; save it as float32"
    );
    let whole = npz.read::<f32>("y").unwrap_err().to_string();
    assert!(whole.starts_with(&format!("`{}` is not a valid npz file: ", path.display())), "{whole}");
}

#[test]
fn a_shape_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let error = write_npz(&path, |npz| npz.add("x", &[2, 2], &[1i8; 3])).unwrap_err();
    assert!(matches!(&error, Error::Shape { found, .. } if found == &[3]), "{error:?}");
    let error = write_npz(&path, |npz| npz.scalar("x", 1i8).and_then(|()| npz.scalar("x", 2i8))).unwrap_err();
    assert!(reason(error).starts_with("array `x`: "));
    assert!(!path.exists());
}

/// Cut at every length, a file is an error and never a panic or wrong data.
#[test]
fn a_truncated_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    write_npz(&path, |npz| npz.add("x", &[4], &[1.0f32; 4])).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Npz::open(&path).and_then(|npz| npz.read::<f32>("x")).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{length}: {error:?}");
    }
}

/// With any one byte changed, a file is an error or reads as before (the change hit a field nobody uses).
#[test]
fn a_damaged_file_never_gives_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let data = [1.0f32, 2.0, 3.0, 4.0];
    write_npz(&path, |npz| npz.add("x", &[4], &data)).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        fs::write(&path, &bytes).unwrap();
        match Npz::open(&path).and_then(|npz| npz.read::<f32>("x")) {
            Ok(stored) => assert_eq!(stored.data, data, "byte {at}"),
            Err(Error::Malformed { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other:?}"),
        }
    }
    assert!(refused > whole.len() / 3, "{refused} of {}", whole.len());
}

/// A zip archive with one entry `x.npy` made of these bytes.
fn archive(path: &Path, content: &[u8]) {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("x.npy", options).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
}

fn npy(dict: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(dict.len() + 1).unwrap().to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.push(b'\n');
    bytes.extend(data);
    bytes
}

#[test]
fn hostile_headers_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let read = |content: &[u8]| {
        archive(&path, content);
        Npz::open(&path).and_then(|npz| npz.read::<f32>("x")).map_err(reason)
    };
    let dict = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    assert_eq!(read(&npy(&dict("(2,)"), &[0; 8])).unwrap().data, [0.0, 0.0]);
    let huge = read(&npy(&dict("(1000000000000,)"), &[0; 8])).unwrap_err();
    assert_eq!(huge, "array `x`: shape [1000000000000] needs 4000000000000 bytes, found 8");
    let overflow = read(&npy(&dict("(4294967296, 4294967296, 4)"), &[0; 8])).unwrap_err();
    assert!(overflow.ends_with("is too large"), "{overflow}");
    let deep = read(&npy(&"(".repeat(60_000), &[])).unwrap_err();
    assert!(deep.ends_with("too many brackets"), "{deep}");
    assert!(read(b"").unwrap_err().contains("cut off"));
    assert!(read(b"\x93NUMPY\x01\x00\xff\xff{").unwrap_err().contains("cut off"));
    assert!(read(&[b'a'; 200]).is_err());
}

#[test]
fn columns_first_becomes_rows_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let data: Vec<u8> = [0i32, 1, 2, 3, 4, 5].iter().flat_map(|v| v.to_le_bytes()).collect();
    archive(&path, &npy("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 3), }", &data));
    let stored = Npz::open(&path).unwrap().read::<i32>("x").unwrap();
    assert_eq!(stored, Stored { shape: vec![2, 3], data: vec![0, 2, 4, 1, 3, 5] });
}

#[test]
fn mlx_arrays_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let x = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    let ids = Array::from_slice(&[3i32, -4], &[2]);
    let scalar = Array::from_f32(0.5);
    write_npz(&path, |npz| {
        npz.array("x", &x)?;
        npz.array("turned", &x.t())?;
        npz.array("ids", &ids)?;
        npz.array("scalar", &scalar)?;
        npz.array("empty", &Array::from_slice::<f32>(&[], &[0, 2]))
    })
    .unwrap();
    let npz = Npz::open(&path).unwrap();
    assert_eq!(host_values::<f32>(&npz.array("x").unwrap()).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let turned = npz.f32_array("turned", &[3, 2]).unwrap();
    assert_eq!(host_values::<f32>(&turned).unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let ids = npz.array("ids").unwrap();
    assert_eq!(ids.dtype(), Dtype::Int32);
    assert_eq!(host_values::<i32>(&ids).unwrap(), [3, -4]);
    assert_eq!(npz.array("scalar").unwrap().shape(), &[] as &[i32]);
    assert_eq!(npz.array("empty").unwrap().shape(), [0, 2]);
    let half = x.as_dtype(Dtype::Float16).unwrap();
    let refused = write_npz(&path, |npz| npz.array("half", &half)).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }));
}

/// numpy reads what is written here, and the other way round, compressed or not.
#[test]
fn numpy_agrees() {
    let python = std::env::var("TAQ_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import numpy"]).output();
    if !found.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: `{python}` has no numpy (TAQ_TEST_PYTHON may name one that has)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_all(&dir.path().join("ours.npz"));
    write_npz(&dir.path().join("text.npz"), |npz| {
        npz.strings("prompts", &["a café".into(), String::new(), "四".into()])?;
        npz.strings("none", &[])
    })
    .unwrap();
    let script = r#"
import numpy as np
z = np.load("ours.npz")
expected = {
    "x": np.array([[.1, -1, 2], [3, 1e-20, np.inf]], np.float32), "double": np.array([.1, 1e300]),
    "weight_int": np.array([[-8, 7], [-128, 127]], np.int8), "index": np.array([-1, 0, 2**31 - 1], np.int32),
    "long": np.array([-2**63]), "byte": np.array([0, 255], np.uint8),
    "counts": np.array([0, 2**64 - 1], np.uint64), "mask": np.array([[True], [False]]),
    "none": np.zeros((0, 4), np.float32), "sigma": np.float32(.25), "step_index": np.int32(7),
    "is_final": np.bool_(True)}
assert sorted(z.files) == sorted(expected), z.files
for name, value in expected.items():
    value = np.asarray(value)
    assert z[name].dtype == value.dtype and z[name].shape == value.shape, (name, z[name])
    assert np.array_equal(z[name], value), (name, z[name])
t = np.load("text.npz")
assert t["prompts"].tolist() == ["a caf\u00e9", "", "\u56db"] and t["prompts"].dtype == "<U6", t["prompts"]
assert t["none"].tolist() == []
for save, name in (np.savez, "plain.npz"), (np.savez_compressed, "small.npz"):
    save(name, a=np.arange(6, dtype=np.float32).reshape(2, 3), f=np.asfortranarray([[1, 2], [3, 4]], np.int32),
         s=np.int64(-5), b=np.array([True]), many=np.arange(50000) % 7)
"#;
    let status = Command::new(&python).args(["-c", script]).current_dir(dir.path()).status().unwrap();
    assert!(status.success());
    for name in ["plain.npz", "small.npz"] {
        let npz = Npz::open(&dir.path().join(name)).unwrap();
        assert_eq!(npz.vec::<f32>("a", &[2, 3]).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(npz.vec::<i32>("f", &[2, 2]).unwrap(), [1, 2, 3, 4]);
        assert_eq!(npz.scalar::<i64>("s").unwrap(), -5);
        assert_eq!(npz.vec::<bool>("b", &[1]).unwrap(), [true]);
        let many = npz.vec::<i64>("many", &[50_000]).unwrap();
        assert!(many.iter().enumerate().all(|(i, &v)| v == i as i64 % 7));
    }
}
