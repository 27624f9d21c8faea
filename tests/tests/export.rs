//! `taq export`: what leaves is what the run rounded, as the formats' own readers see it.

use std::path::Path;

use taq_core::image::Image;
use taq_core::metrics::mse;
use taq_tests::python::python;
use taq_tests::taq::{artifacts, assert_same_artifacts, fail, folded, succeed};

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

/// What Stability AI's layout says of the rounded model, by the package `safetensors`: the same numbers as diffusers' layout.
const CHECK_SINGLE: &str = r#"
import sys
import numpy as np
from safetensors.numpy import load_file
single, diffusers = load_file(sys.argv[1]), load_file(sys.argv[2])
p = "model.diffusion_model."
assert {k.split(".")[0] for k in single} == {"model", "first_stage_model", "text_encoders"}
assert single[p + "joint_blocks.0.x_block.attn.qkv.weight"].shape == (576, 192)
assert all(v.dtype == np.float32 for k, v in single.items() if k.startswith(p))
checked = 0
def same(theirs, ours):
    global checked
    assert np.array_equal(single[p + theirs], ours), theirs
    checked += 1
for part in ("weight", "bias"):
    get = lambda name: diffusers[f"{name}.{part}"]
    for i in range(6):
        for stream, names in [("x_block", "to_q to_k to_v to_out.0 ff norm1"), ("context_block", "add_q_proj add_k_proj add_v_proj to_add_out ff_context norm1_context")]:
            q, k, v, out, ff, norm = names.split()
            block, here = f"joint_blocks.{i}.{stream}", f"transformer_blocks.{i}"
            same(f"{block}.attn.qkv.{part}", np.concatenate([get(f"{here}.attn.{n}") for n in (q, k, v)]))
            modulation = get(f"{here}.{norm}.linear")
            if stream == "context_block" and i == 5:
                modulation = np.concatenate(np.split(modulation, 2)[::-1])
            else:
                same(f"{block}.attn.proj.{part}", get(f"{here}.attn.{out}"))
                same(f"{block}.mlp.fc1.{part}", get(f"{here}.{ff}.net.0.proj"))
                same(f"{block}.mlp.fc2.{part}", get(f"{here}.{ff}.net.2"))
            same(f"{block}.adaLN_modulation.1.{part}", modulation)
    same(f"final_layer.adaLN_modulation.1.{part}", np.concatenate(np.split(get("norm_out.linear"), 2)[::-1]))
    same(f"final_layer.linear.{part}", get("proj_out"))
    same(f"x_embedder.proj.{part}", get("pos_embed.proj"))
    same(f"context_embedder.{part}", get("context_embedder"))
    for ours, theirs in [("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")]:
        for a, b in [("linear_1", "mlp.0"), ("linear_2", "mlp.2")]:
            same(f"{theirs}.{b}.{part}", get(f"time_text_embed.{ours}.{a}"))
same("pos_embed", diffusers["pos_embed.pos_embed"])
assert checked == sum(k.startswith(p) for k in single), (checked, len(single))
print(checked)
"#;

#[test]
fn a_single_file_is_a_model_that_exports_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = rounded(folder.path(), &["--bits-w", "4"]);
    let export = |run: &str, format: &str, out: &str| {
        let flags = ["export", "--run", run, "--format", format, "--out", out, "--float-type", "f32"];
        succeed(HOST, &flags)
    };
    let (single, diffusers) = (at("single"), at("diffusers"));
    assert!(export(&run, "single-file", &single).contains("69 layers dequantized"));
    export(&run, "diffusers", &diffusers);
    let file = format!("{single}/model.safetensors");
    let weights = format!("{diffusers}/transformer/diffusion_pytorch_model.safetensors");
    if let Some(said) = python(&["numpy", "safetensors"], CHECK_SINGLE, &[&file, &weights]) {
        assert_eq!(said.trim(), "131");
    }

    // taq reads both, and they are the same model; the folder of the file is the file.
    let paint = |name: &str, model: &str| {
        let (image, none) = (at(name), at("none"));
        let flags = ["--full-precision", "--steps", "3", "--prompt", "red heart", "--run", &none];
        succeed(HOST, &[&["generate", "--output-image", &image, "--model", model][..], &flags].concat());
        Image::read_png(Path::new(&image)).unwrap().0
    };
    let expected = paint("a.png", &diffusers);
    assert!(expected == paint("b.png", &file));
    assert!(expected == paint("c.png", &single));

    // A run on the single file can be exported to everything.
    let second = at("second");
    for stage in [
        &["calibrate", "--num-images", "1", "--steps", "2", "--model", &file][..],
        &["observe"],
        &["decide"],
        &["round", "--rounder", "nearest", "--bits-w", "8"],
    ] {
        succeed(HOST, &[stage, &["--run", &second]].concat());
    }
    for format in ["diffusers", "packed", "single-file", "mlx", "gguf"] {
        export(&second, format, &at(&format!("second-{format}")));
    }
    let again = paint("d.png", &at("second-diffusers"));
    assert!(mse(again.pixels(), expected.pixels()).unwrap() < 1e-3);
    assert!(again == paint("e.png", &at("second-single-file")));
}

/// The loader that lies in a packed folder against dequantized weights, bit for bit.
const CHECK_PACKED: &str = r#"
import sys
import numpy as np
packed, diffusers = sys.argv[1:]
sys.path.insert(0, packed)
import load
found = load.load_transformer(packed)
expected = load.read_safetensors(f"{diffusers}/transformer/diffusion_pytorch_model.safetensors")
assert found.keys() == expected.keys()
for name, values in found.items():
    assert np.array_equal(values.astype(np.float32).view(np.uint32), expected[name].view(np.uint32)), name
tensors = load.read_safetensors(f"{packed}/transformer/quantized.safetensors")
count = lambda part: sum(name.endswith(part) for name in tensors)
print(count(".weight_packed"), count(".column_multiplier"))
"#;

#[test]
fn packed_folders_hold_what_their_loader_dequantizes_and_what_import_needs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = rounded(folder.path(), &[]);
    // In f32, where a learned bias that is added to the layer's own is the same number in both.
    let export = |run: &str, out: &str, format: &str| {
        let flags = ["export", "--run", run, "--format", format, "--out", out, "--float-type", "f32"];
        succeed(HOST, &flags)
    };
    let same = |a: &str, b: &str| assert_same_artifacts(Path::new(a), Path::new(b));
    let settings = at("settings.json");
    std::fs::write(&settings, r#"{"iters": 3, "polish": 2, "migrate": "all", "start": "nearest"}"#).unwrap();
    let learned = format!("taq-dit --batch-size 4 --rows 4 --held-out-rows 2 --rounder-config {settings}");
    for (name, layers, rounder) in [
        ("channel", "69", "nearest --bits-w 3"),
        // With 18 layers whose input is not quantized.
        ("group", "87", "nearest --group-size 32 --symmetric --bits-w 5 --bits-a 6 --weight-only-bits 4"),
        ("learned", "69", &learned),
    ] {
        let flags: Vec<&str> =
            ["round", "--force", "--run", &run, "--rounder"].into_iter().chain(rounder.split(' ')).collect();
        succeed(HOST, &flags);
        let (packed, plain) = (at(&format!("{name}-packed")), at(&format!("{name}-plain")));
        let said = export(&run, &packed, "packed");
        assert!(said.contains(&format!("{layers} layers packed")) && !said.contains("dequantized"), "{said}");
        export(&run, &plain, "diffusers");
        if let Some(said) = python(&["numpy"], CHECK_PACKED, &[&packed, &plain]) {
            let (found, multipliers) = said.trim().split_once(' ').unwrap();
            assert_eq!(found, layers);
            assert_eq!(multipliers != "0", name == "learned", "{said}");
        }
        // Into a new run, which then is that run, and out of it again.
        let (back, again) = (at(&format!("{name}-back")), at(&format!("{name}-again")));
        let _ = std::fs::remove_dir_all(format!("{packed}/__pycache__"));
        let said = succeed(HOST, &["import", &packed, "--run", &back]);
        assert!(said.contains(&format!("{layers} layers of packed")), "{said}");
        for kept in ["quantized_weights", "activations/quant_config.json"] {
            let (a, b) = (format!("{run}/{kept}"), format!("{back}/{kept}"));
            if Path::new(&a).is_dir() { same(&a, &b) } else { assert_eq!(read(&a), read(&b)) }
        }
        export(&back, &again, "packed");
        same(&packed, &again);
        assert!(succeed(HOST, &["import", &packed, "--run", &back]).contains("reused"));
    }
    // Both paint the same picture.
    let paint = |run: &str, name: &str| {
        let file = at(name);
        let flags =
            ["generate", "--run", run, "--steps", "3", "--prompt", "red heart", "--output-image", &file];
        succeed(HOST, &flags);
        Image::read_png(Path::new(&file)).unwrap().0
    };
    assert!(paint(&run, "a.png") == paint(&at("learned-back"), "b.png"));

    // What is learned of inputs is in no other format, and cannot be told apart there.
    let mlx = at("mlx");
    succeed(HOST, &["export", "--run", &run, "--format", "mlx", "--out", &mlx]);
    refused(&["import", &mlx, "--run", &at("x"), "--plan", &run], "A packed folder");
    assert!(!Path::new(&at("x/quantized_weights")).exists());
    let packed = at("learned-packed");
    refused(&["import", &packed, "--run", &at("x"), "--plan", &run], "leave --plan away");
    refused(
        &["import", &packed, "--run", &at("y"), "--model", &at("learned-plain")],
        "was exported of the model `emoji-sd3`",
    );
    refused(&["import", &at("learned-plain"), "--run", &at("x")], "holds no integers");
    refused(&["import", &at("group-packed"), "--run", &run], "results of another run");
    std::fs::write(format!("{packed}/transformer/quantized.safetensors"), "nothing").unwrap();
    refused(&["import", &packed, "--run", &at("z")], "is not a valid safetensors file");
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn refused(arguments: &[&str], reason: &str) {
    let (code, message) = fail(HOST, arguments);
    assert!(folded(&message).contains(reason), "{message}");
    assert_eq!(code, 2, "{message}");
}

#[test]
fn integers_of_mlx_and_ggml_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = rounded(folder.path(), &[]);
    for (bits, more) in [
        ("4", ""),
        ("3", " --group-size 64 --weight-only-bits 6"),
        ("5", " --symmetric"),
        ("7", " --blocks mm1,mm4"),
    ] {
        let flags = format!("round --force --run {run} --rounder nearest --bits-w {bits}{more}");
        succeed(HOST, &flags.split(' ').collect::<Vec<_>>());
        for (format, file) in [("mlx", "model.safetensors"), ("gguf", "model.gguf")] {
            let [out, back, again] =
                ["out", "back", "again"].map(|what| at(&format!("{format}-{bits}-{what}")));
            let export = |run: &str, out: &str| {
                succeed(HOST, &["export", "--run", run, "--format", format, "--out", out]);
                (read(&format!("{out}/{file}")), std::fs::read(format!("{out}/config.json")).ok())
            };
            let first = export(&run, &out);
            if bits == "4" {
                refused(&["import", &out, "--run", &back], "holds no grids of inputs");
                assert!(!Path::new(&back).exists());
            }
            let said = succeed(HOST, &["import", &out, "--run", &back, "--plan", &run]);
            let layers = match bits {
                "3" => "87 layers of",
                "7" => "24 layers of",
                _ => "69 layers of",
            };
            assert!(said.contains(layers), "{said}");
            assert!(first == export(&back, &again), "{format} of {bits} bits");
        }
    }
    // The imported model is a run like any other.
    let out = at("report.html");
    succeed(HOST, &["report", "--run", &at("mlx-4-back"), "--out", &out]);
    assert!(String::from_utf8(read(&out)).unwrap().contains("import"));
    succeed(HOST, &["plot", "--run", &at("mlx-4-back")]);
    // Another model's file.
    let file = at("gguf-4-out/model.gguf");
    let mut bytes = read(&file);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1.5_f32.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    refused(&["import", &file, "--run", &at("x"), "--plan", &run], "are not the model's");
}
