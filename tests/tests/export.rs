//! `taq export`: what leaves is what the run rounded, as the formats' own readers see it.

use std::path::Path;

use taq_core::image::Image;
use taq_core::metrics::mse;
use taq_tests::python::python;
use taq_tests::taq::{artifacts, fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// A run with weights rounded to nearest, and a folder beside it.
fn rounded(folder: &Path, flags: &[&str]) -> String {
    let run = folder.join("run").to_str().unwrap().to_owned();
    let round = [&["round", "--rounder", "nearest"][..], flags].concat();
    for stage in [&["calibrate", "--num-images", "2", "--steps", "3"][..], &["observe"], &["decide"], &round]
    {
        succeed(HOST, &[stage, &["--run", &run]].concat());
    }
    run
}

/// Relative error of every exported weight against the run's integers, by numpy.
const CHECK: &str = r#"
import glob, json, os, sys
import numpy as np
run, out, kind = sys.argv[1:]
config = json.load(open(f"{run}/quantized_weights/config.json"))
modules = {"attn.q_proj": "attn.to_q", "attn.k_proj": "attn.to_k", "attn.v_proj": "attn.to_v", "attn.o_proj": "attn.to_out.0",
           "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
texts = {"attn.q_proj": "attn.add_q_proj", "attn.k_proj": "attn.add_k_proj", "attn.v_proj": "attn.add_v_proj",
         "attn.o_proj": "attn.to_add_out", "mlp.fc1": "ff_context.net.0.proj", "mlp.fc2": "ff_context.net.2"}
if kind == "mlx":
    import mlx.core as mx
    import mlx.nn as nn
    tensors = mx.load(f"{out}/model.safetensors")
    widths = json.load(open(f"{out}/config.json"))["quantization"]
else:
    from safetensors.numpy import load_file
    tensors = load_file(f"{out}/transformer/diffusion_pytorch_model.safetensors")
worst, layers = 0.0, 0
for block in config["block_metrics"]:
    npz = np.load(f"{run}/quantized_weights/weights/{block['block_name']}.npz")
    for layer in block["layers"]:
        prefix = next(k for k in npz.files if k.startswith(layer.replace(".", "_")) and k.endswith("__weight_int"))[:-12]
        q, s, z = (npz[f"{prefix}__{part}"].astype(np.float64) for part in ("weight_int", "scale", "zero_point"))
        groups = q.reshape(q.shape[0], s.shape[1], -1)
        expected = ((groups - z[:, :, None]) * s[:, :, None]).reshape(q.shape)
        number, stream, role = layer[2:].split(".", 2)
        module = f"transformer_blocks.{number}.{(modules if stream == 'img' else texts)[role]}"
        if kind == "mlx":
            w, how = tensors[f"{module}.weight"], widths[module]
            linear = nn.QuantizedLinear(q.shape[1], q.shape[0], group_size=how["group_size"], bits=how["bits"])
            linear.load_weights([(p, tensors[f"{module}.{p}"]) for p in ("weight", "scales", "biases", "bias")])
            found = np.array(mx.dequantize(linear.weight, linear.scales, linear.biases, how["group_size"], how["bits"]).astype(mx.float32))
            x = mx.array(np.linspace(-1, 1, q.shape[1], dtype=np.float32)[None])
            y = np.array(linear(x)) - np.array(linear.bias.astype(mx.float32))
            error = np.linalg.norm(y - np.array(x) @ found.T) / np.linalg.norm(y)
            assert error < 2e-3, (layer, error)
        else:
            found = tensors[f"{module}.weight"].astype(np.float64)
        worst, layers = max(worst, np.linalg.norm(found - expected) / np.linalg.norm(expected)), layers + 1
print(layers, worst)
"#;

fn check(run: &str, out: &str, kind: &str, modules: &[&str]) {
    let Some(said) = python(modules, CHECK, &[run, out, kind]) else { return };
    let (layers, worst) = said.trim().split_once(' ').unwrap();
    assert_eq!(layers, "69");
    assert!(worst.parse::<f64>().unwrap() < 2e-3, "{said}");
}

#[test]
fn diffusers_get_a_model_with_the_rounded_weights() {
    let folder = tempfile::tempdir().unwrap();
    let run = rounded(folder.path(), &["--bits-w", "3"]);
    let before = artifacts(Path::new(&run));
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let said = succeed(HOST, &["export", "--run", &run, "--format", "diffusers", "--out", out]);
    assert!(said.contains("69 layers dequantized"), "{said}");
    assert_eq!(artifacts(Path::new(&run)), before);
    check(&run, out, "diffusers", &["numpy", "safetensors"]);

    // taq reads it as a model of its own: its images are those of 3-bit weights, not of the original.
    let paint = |name: &str, model: &[&str]| {
        let file = folder.path().join(name);
        let at = folder.path().join("none");
        let flags =
            ["--full-precision", "--steps", "6", "--prompt", "red heart", "--run", at.to_str().unwrap()];
        succeed(HOST, &[&["generate", "--output-image", file.to_str().unwrap()][..], &flags, model].concat());
        Image::read_png(&file).unwrap().0
    };
    let (exported, original) = (paint("exported.png", &["--model", out]), paint("original.png", &[]));
    let error = mse(exported.pixels(), original.pixels()).unwrap();
    assert!(error > 1e-4 && error < 0.1, "{error}");

    let (code, message) = fail(HOST, &["export", "--run", &run, "--format", "mlx", "--out", out]);
    assert!(folded(&message).contains("is not empty"), "{message}");
    assert_eq!(code, 2);
}

#[test]
fn mlx_gets_packed_integers() {
    let folder = tempfile::tempdir().unwrap();
    for (bits, group) in [("4", None), ("3", Some("64")), ("6", None)] {
        let root = folder.path().join(bits);
        let flags: Vec<&str> =
            ["--bits-w", bits].into_iter().chain(group.iter().flat_map(|g| ["--group-size", *g])).collect();
        let run = rounded(&root, &flags);
        let out = root.join("out");
        let out = out.to_str().unwrap();
        let said = succeed(HOST, &["export", "--run", &run, "--format", "mlx", "--out", out]);
        assert!(said.contains("69 layers packed") && !said.contains("dequantized"), "{said}");
        check(&run, out, "mlx", &["numpy", "mlx.core", "mlx.nn"]);
    }
    // A run without rounded weights has nothing to export.
    let run = folder.path().join("4/run");
    std::fs::remove_dir_all(run.join("quantized_weights")).unwrap();
    let out = folder.path().join("none");
    let flags = ["export", "--format", "mlx", "--run", run.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (_, message) = fail(HOST, &flags);
    assert!(folded(&message).contains("taq round"), "{message}");
    assert!(!out.exists());
}

/// Relative error of every matrix of a GGUF file against the run's integers, and the shapes that ggml would lose.
const CHECK_GGUF: &str = r#"
import json, sys
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
run, path = sys.argv[1:]
reader = GGUFReader(path)
assert str(bytes(reader.get_field("general.architecture").parts[-1]), "utf-8") == "sd3"
field = reader.get_field("comfy.gguf.orig_shape.pos_embed")
assert [int(field.parts[i][0]) for i in field.data] == [1, 576, 192]
tensors = {t.name: t for t in reader.tensors}
matrix = lambda name: dequantize(tensors[name].data, tensors[name].tensor_type).astype(np.float64)
worst, kinds = 0.0, set()
for number in range(6):
    npz = np.load(f"{run}/quantized_weights/weights/mm{number}.npz")
    def weight(prefix):
        q, s, z = (npz[f"{prefix}__{part}"].astype(np.float64) for part in ("weight_int", "scale", "zero_point"))
        groups = q.reshape(q.shape[0], s.shape[1], -1)
        return ((groups - z[:, :, None]) * s[:, :, None]).reshape(q.shape)
    for stream, name in [("img", "x_block"), ("txt", "context_block")]:
        p, block = f"mm{number}_{stream}", f"joint_blocks.{number}.{name}"
        pairs = [(f"{block}.attn.qkv.weight", np.concatenate([weight(f"{p}_attn_{k}_proj") for k in "qkv"]))]
        if number < 5 or stream == "img":
            pairs += [(f"{block}.{n}.weight", weight(f"{p}_{l}")) for n, l in
                      [("attn.proj", "attn_o_proj"), ("mlp.fc1", "mlp_fc1"), ("mlp.fc2", "mlp_fc2")]]
        for key, expected in pairs:
            found = matrix(key)
            assert found.shape == expected.shape, (key, found.shape)
            worst = max(worst, np.linalg.norm(found - expected) / np.linalg.norm(expected))
            kinds.add(tensors[key].tensor_type.name)
print(*sorted(kinds), len(tensors), worst)
"#;

#[test]
fn ggml_gets_blocks() {
    let folder = tempfile::tempdir().unwrap();
    for (bits, kind, kept, near) in [("4", "Q4_1", 69, 2e-3), ("5", "Q5_1", 69, 2e-3), ("8", "Q8_0", 0, 1e-2)]
    {
        let root = folder.path().join(bits);
        let run = rounded(&root, &["--bits-w", bits]);
        let out = root.join("out");
        let said =
            succeed(HOST, &["export", "--run", &run, "--format", "gguf", "--out", out.to_str().unwrap()]);
        let counted = if kept > 0 { "69 layers packed" } else { "69 layers dequantized" };
        assert!(said.contains(counted), "{said}");
        let file = out.join("model.gguf");
        let Some(said) = python(&["numpy", "gguf"], CHECK_GGUF, &[&run, file.to_str().unwrap()]) else {
            return;
        };
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words[0], kind, "{said}");
        assert!(words[2].parse::<f64>().unwrap() < near, "{said}");
    }
}
