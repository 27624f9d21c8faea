//! The transformer against diffusers' tensors (`tests/golden`), and what the engine relies on.

use std::collections::BTreeMap;

use half::f16;
use mlx_rs::transforms::grad;
use mlx_rs::{Array, Dtype, error::Exception};
use taq_core::{Conditioning, Error, Identity, LayerId, LinearCall, Result, Role, Tap, WeightIssue};

use super::config::QkNorm;
use super::embed::{sinusoid, sinusoid_f16};
use super::{Compat, Mmdit, MmditConfig};
use crate::models::sd3::source::{Component, ModelFiles, Naming, T5};
use crate::models::sd3::testing::{self, Golden, relative_error, repository};
use crate::models::sd3::weights::{Loader, Weights};

/// Relative L2 error that two fp32 implementations may differ by (`tests/golden/README.md`).
const TOLERANCE: f64 = 2e-5;

/// The transformer of a model in the repository.
fn files(model: &str) -> Component {
    let path = repository(model);
    ModelFiles::resolve(path.to_str(), T5::Auto).unwrap().transformer
}

fn load(model: &str, compat: Compat) -> Mmdit {
    Mmdit::load(&files(model), compat, Dtype::Float32).unwrap()
}

const EMOJI: &str = "models/emoji-sd3";
const TINY: [&str; 2] = ["tests/golden/tiny-sd3", "tests/golden/tiny-sd35"];

/// The prompts of a file's latents.
fn conditioning(golden: &Golden) -> Conditioning {
    Conditioning { tokens: golden.get("prompt_embeds"), pooled: golden.get("pooled") }
}

fn values(x: &Array) -> Vec<f32> {
    x.contiguous().unwrap().as_slice().to_vec()
}

#[track_caller]
fn assert_close(what: &str, found: &Array, expected: &Array) {
    testing::assert_close(found, expected, TOLERANCE, what);
}

/// The whole transformer.
fn denoise(model: &Mmdit, x: &Array, t: &[f32], c: &Conditioning, tap: &mut dyn Tap) -> Result<Array> {
    let mut io = model.embed(x, t, c, tap)?;
    for block in 0..model.config().num_layers {
        io = model.block_forward(block, &io, tap)?;
    }
    model.unembed(&io, (x.dim(1) as usize, x.dim(2) as usize), tap)
}

/// What a tap saw of a layer.
struct Seen {
    input: Array,
    output: Array,
    has_bias: bool,
}

/// Remembers every call.
#[derive(Default)]
struct Recorder {
    order: Vec<LayerId>,
    calls: BTreeMap<LayerId, Seen>,
}

impl Tap for Recorder {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        let output = call.compute()?;
        let seen = Seen { input: call.input.clone(), output: output.clone(), has_bias: call.bias.is_some() };
        self.order.push(call.layer.id.clone());
        self.calls.insert(call.layer.id.clone(), seen);
        Ok(output)
    }
}

impl Recorder {
    fn get(&self, id: &str) -> &Seen {
        &self.calls[&LayerId::from(id)]
    }
}

#[test]
fn emoji_velocities_are_those_of_diffusers() {
    let (model, golden) = (load(EMOJI, Compat::None), Golden::open("emoji_sd3.safetensors"));
    for t in ["1000.0", "750.25", "401.5", "8.928571"] {
        let timestep: f32 = t.parse().unwrap();
        let x = golden.nhwc("noise_nchw");
        let v = denoise(&model, &x, &[timestep; 2], &conditioning(&golden), &mut Identity).unwrap();
        assert_close(&format!("t = {t}"), &v, &golden.nhwc(&format!("velocity_t{t}")));
    }
}

#[test]
fn every_block_and_the_inputs_of_linear_layers_are_those_of_diffusers() {
    let (model, golden) = (load(EMOJI, Compat::None), Golden::open("emoji_sd3.safetensors"));
    let mut tap = Recorder::default();
    let mut io =
        model.embed(&golden.nhwc("noise_nchw"), &[401.5; 2], &conditioning(&golden), &mut Identity).unwrap();
    for block in 0..6 {
        io = model.block_forward(block, &io, &mut tap).unwrap();
        let expected = |stream| golden.get(&format!("block_out.transformer_blocks.{block}.{stream}"));
        assert_close(&format!("image of block {block}"), &io.hidden, &expected("image"));
        match &io.context {
            Some(context) => assert_close(&format!("text of block {block}"), context, &expected("text")),
            None => assert_eq!(block, 5),
        }
    }
    for (id, key) in [
        ("mm0.img.attn.q_proj", "0.attn.to_q"),
        ("mm2.img.mlp.fc2", "2.ff.net.2"),
        ("mm2.txt.mlp.fc2", "2.ff_context.net.2"),
        ("mm3.img.attn.o_proj", "3.attn.to_out.0"),
    ] {
        assert_close(id, &tap.get(id).input, &golden.get(&format!("linear_in.transformer_blocks.{key}")));
    }
}

#[test]
fn both_variants_in_both_layouts_are_those_of_diffusers() {
    for variant in TINY {
        let golden = Golden::open(&format!("{}/golden.safetensors", variant.rsplit('/').next().unwrap()));
        let c = conditioning(&golden);
        let mixed = values(&golden.get("mixed_t"));
        for layout in [variant.to_owned(), format!("{variant}/single_file.safetensors")] {
            let model = load(&layout, Compat::None);
            let check = |latent: &str, t: &[f32], expected: &str| {
                let c = c.rows(&(0..t.len()).collect::<Vec<_>>()).unwrap();
                let v = denoise(&model, &golden.nhwc(latent), t, &c, &mut Identity).unwrap();
                assert_close(&format!("{layout}, {expected}"), &v, &golden.nhwc(expected));
            };
            check("latent_nchw", &[500.0; 2], "velocity_t500.0");
            check("latent_nchw", &[999.0; 2], "velocity_t999.0");
            check("latent_nchw", &[37.25; 2], "velocity_t37.25");
            check("latent_nchw", &mixed, "velocity_mixed_t");
            check("latent_rect_nchw", &[500.0], "velocity_rect_t500.0");
        }
    }
}

#[test]
fn the_tap_sees_the_layers_of_the_specification_in_its_order() {
    for model in [EMOJI, TINY[0], TINY[1]] {
        let model = load(model, Compat::None);
        let config = model.config();
        let (batch, tokens) = (1, 3);
        let zeros = |shape: &[usize]| {
            let shape: Vec<i32> = shape.iter().map(|&d| d as i32).collect();
            mlx_rs::ops::zeros::<f32>(&shape).unwrap()
        };
        let c = Conditioning {
            tokens: zeros(&[batch, tokens, config.joint_attention_dim]),
            pooled: zeros(&[batch, config.pooled_projection_dim]),
        };
        let mut tap = Recorder::default();
        denoise(&model, &zeros(&[batch, 4, 4, 16]), &[1.0], &c, &mut tap).unwrap();
        let layers: Vec<_> = model.block_specs().into_iter().flat_map(|b| b.layers).collect();
        assert_eq!(tap.order, layers.iter().map(|l| l.id.clone()).collect::<Vec<_>>());
        for layer in &layers {
            let seen = tap.get(layer.id.as_str());
            assert_eq!(seen.input.dim(2) as usize, layer.in_features, "{}", layer.id);
            assert_eq!(seen.output.dim(2) as usize, layer.out_features, "{}", layer.id);
            assert_eq!(layer.post_gelu, layer.role == Role::Fc2, "{}", layer.id);
            assert_eq!(
                model.weight(&layer.id).unwrap().shape(),
                [layer.out_features as i32, layer.in_features as i32]
            );
        }
    }
}

/// A transformer without weights, and how many parameters it asks for.
fn without_weights(config: MmditConfig) -> (Mmdit, usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.safetensors");
    std::fs::write(&path, [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    let weights = Weights::open(&path).unwrap();
    let loader = Loader::new(&weights);
    let model = Mmdit::from_loader(&loader, config, Compat::None).unwrap();
    let Err(Error::Weights { issues, .. }) = loader.finish() else { panic!("the file is empty") };
    let parameters = issues.iter().map(|issue| match issue {
        WeightIssue::Missing { shape, .. } => shape.iter().product::<usize>(),
        other => panic!("{other}"),
    });
    (model, parameters.sum())
}

#[test]
fn the_published_models_have_their_published_sizes() {
    let (sd3, parameters) = without_weights(MmditConfig::sd3_medium());
    assert_eq!(parameters, 2_084_951_104);
    let layers: Vec<_> = sd3.block_specs().into_iter().flat_map(|b| b.layers).collect();
    assert_eq!(layers.len(), 285);
    assert_eq!(layers.iter().map(|l| l.parameters()).sum::<usize>(), 1_337_720_832);

    let count =
        |config| without_weights(config).0.block_specs().iter().map(|b| b.layers.len()).sum::<usize>();
    assert_eq!(count(MmditConfig::sd3_5_medium()), 285 + 13 * 4);
    assert_eq!(count(MmditConfig::sd3_5_large()), 38 * 12 - 3);
    assert_eq!(load(EMOJI, Compat::None).block_specs().iter().map(|b| b.layers.len()).sum::<usize>(), 69);
}

#[test]
fn the_sizes_of_a_single_file_follow_from_its_shapes() {
    let infer = |model: &str| {
        let files = files(&format!("{model}/single_file.safetensors"));
        assert_eq!(files.naming, Naming::Original);
        MmditConfig::infer(&Weights::open(&files.weights).unwrap(), files.prefix).unwrap()
    };
    let read = |model: &str| MmditConfig::read(&repository(model).join("transformer/config.json")).unwrap();
    let sd35 = infer(TINY[1]);
    assert_eq!(sd35, MmditConfig { sample_size: 128, ..read(TINY[1]) });
    assert_eq!((sd35.qk_norm, sd35.dual_attention_layers.len()), (Some(QkNorm::RmsNorm), 2));
    // Without query normalization nothing tells the head's size; 64 is that of every published model.
    let sd3 =
        MmditConfig { sample_size: 128, attention_head_dim: 64, num_attention_heads: 1, ..read(TINY[0]) };
    assert_eq!(infer(TINY[0]), sd3);
}

#[test]
fn wrong_configurations_are_refused_with_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let reason = |json: &str| {
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        MmditConfig::read(&path).unwrap_err().to_string()
    };
    assert!(reason(r#"{"_class_name": "FluxTransformer2DModel"}"#).contains("Flux"));
    assert!(reason(r#"{"patch_size": 0}"#).contains("`patch_size` is 0"));
    assert!(reason(r#"{"num_attention_heads": 17}"#).contains("17 heads of 64 channels make 1088"));
    assert!(reason(r#"{"dual_attention_layers": [3, 18]}"#).contains("block 18 of 18"));
    assert!(reason(r#"{"qk_norm": "layer_norm"}"#).contains("layer_norm"));
    assert!(reason("{").contains("config.json"));
}

#[test]
fn misfit_weights_are_named_in_the_layout_of_the_file() {
    let mut files = files(&format!("{}/single_file.safetensors", TINY[0]));
    files.config = Some(repository(TINY[1]).join("transformer/config.json"));
    let Err(Error::Weights { issues, .. }) = Mmdit::load(&files, Compat::None, Dtype::Float32) else {
        panic!("they do not fit")
    };
    let text: Vec<_> = issues.iter().map(ToString::to_string).collect();
    let has = |line: &str| text.iter().any(|t| t.contains(line));
    let block = "model.diffusion_model.joint_blocks.0.x_block";
    assert!(has(&format!("missing     {block}.attn2.qkv.weight [192, 64]")), "{text:#?}");
    assert!(has(&format!("missing     {block}.attn.ln_q.weight [32]")));
    assert!(has(&format!("wrong shape {block}.adaLN_modulation.1.bias: expected [576], found [384]")));
}

#[test]
fn inputs_of_other_shapes_are_refused() {
    let (model, golden) = (load(TINY[0], Compat::None), Golden::open("tiny-sd3/golden.safetensors"));
    let (x, c) = (golden.nhwc("latent_nchw"), conditioning(&golden));
    let one = c.rows(&[0]).unwrap();
    let zeros = |shape: &[i32]| mlx_rs::ops::zeros::<f32>(shape).unwrap();
    let what = |x: &Array, t: &[f32], c: &Conditioning| match model.embed(x, t, c, &mut Identity) {
        Err(Error::Shape { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(&zeros(&[2, 15, 16, 16]), &[1.0; 2], &c), "latent");
    assert_eq!(what(&zeros(&[2, 16, 28, 16]), &[1.0; 2], &c), "latent", "the table has 13 × 13 patches");
    assert_eq!(what(&zeros(&[2, 16, 16, 4]), &[1.0; 2], &c), "latent");
    assert_eq!(what(&x, &[1.0], &c), "timesteps");
    assert_eq!(what(&x, &[1.0; 2], &one), "text tokens");
    assert_eq!(what(&x, &[1.0; 2], &Conditioning { pooled: one.pooled, ..c }), "pooled text embedding");
}

#[test]
fn weights_can_be_replaced() {
    let mut model = load(TINY[0], Compat::None);
    let id = LayerId::from("mm1.txt.mlp.fc1");
    let old = model.weight(&id).unwrap();
    let new = old.multiply(Array::from_f32(2.0)).unwrap();
    model.set_weight(&id, new.clone()).unwrap();
    assert_eq!(values(&model.weight(&id).unwrap()), values(&new));
    let transposed = new.transpose().unwrap();
    assert!(
        matches!(model.set_weight(&id, transposed), Err(Error::Shape { what, .. }) if what.contains("mm1"))
    );
    // The last block's text stream ends at attention.
    assert!(model.weight(&LayerId::from("mm2.txt.attn.v_proj")).is_ok());
    for missing in ["mm2.txt.attn.o_proj", "mm3.img.attn.q_proj", "adaLN"] {
        assert!(model.weight(&LayerId::from(missing)).unwrap_err().to_string().contains(missing));
        assert!(model.set_weight(&LayerId::from(missing), new.clone()).is_err());
    }
}

/// Answers one layer's calls with another weight.
struct Replace<'a>(&'a str, &'a Array);

impl Tap for Replace<'_> {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if call.layer.id.as_str() == self.0 { call.compute_with(call.input, self.1) } else { call.compute() }
    }
}

#[test]
fn gradients_flow_through_a_block_to_weights_that_the_tap_puts_in() {
    let (model, golden) = (load(TINY[1], Compat::None), Golden::open("tiny-sd35/golden.safetensors"));
    let io = model
        .embed(&golden.nhwc("latent_nchw"), &[500.0, 20.0], &conditioning(&golden), &mut Identity)
        .unwrap();
    for id in ["mm0.txt.attn.k_proj", "mm0.img.attn2.q_proj", "mm0.img.mlp.fc1", "mm0.txt.mlp.fc2"] {
        let loss = |w: &Array| -> Result<Array, Exception> {
            let out = model.block_forward(0, &io, &mut Replace(id, w)).unwrap();
            let text = out.context.unwrap().square()?.sum(None)?;
            out.hidden.square()?.sum(None)?.add(text)
        };
        let w = model.weight(&LayerId::from(id)).unwrap();
        let g = grad(|w: &Array| loss(w))(&w).unwrap();
        // A step along the gradient, against the slope of the loss itself.
        let norm = g.square().unwrap().sum(None).unwrap().sqrt().unwrap();
        let h = 1e-2_f32;
        let step = g.divide(&norm).unwrap().multiply(Array::from_f32(h)).unwrap();
        let up = loss(&w.add(&step).unwrap()).unwrap().item_exact::<f32>();
        let down = loss(&w.subtract(&step).unwrap()).unwrap().item_exact::<f32>();
        let (slope, norm) = ((up - down) / (2.0 * h), norm.item_exact::<f32>());
        assert!((slope - norm).abs() < 0.02 * norm, "{id}: slope {slope}, gradient {norm}");
    }
}

/// x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))).
fn naive_gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// x/2 · (1 + erf(x/√2)), erf by its power series, or 1 where that is exact enough.
fn naive_gelu_erf(x: f64) -> f64 {
    let z = x / 2.0_f64.sqrt();
    let erf = if z.abs() > 4.0 {
        z.signum()
    } else {
        let terms = (0..80).scan(z, |term, n| {
            let now = *term / (2 * n + 1) as f64;
            *term *= -z * z / (n + 1) as f64;
            Some(now)
        });
        terms.sum::<f64>() * 2.0 / std::f64::consts::PI.sqrt()
    };
    0.5 * x * (1.0 + erf)
}

#[test]
fn each_deviation_of_diffusionkit_is_as_described_and_matters() {
    let golden = Golden::open("tiny-sd3/golden.safetensors");
    let (x, c) = (golden.nhwc("latent_nchw"), conditioning(&golden));
    let run = |compat| {
        let model = load(TINY[0], compat);
        let mut tap = Recorder::default();
        let v = denoise(&model, &x, &[857.692; 2], &c, &mut tap).unwrap();
        (model, tap, v)
    };
    let (proper, proper_tap, proper_v) = run(Compat::None);
    let (kit, kit_tap, kit_v) = run(Compat::Diffusionkit);
    assert!(relative_error(&kit_v, &proper_v) > 1e-3);

    // Key projections without bias.
    for (id, seen) in &kit_tap.calls {
        let is_key = id.as_str().ends_with("k_proj");
        assert_eq!(seen.has_bias, !is_key, "{id}");
        assert!(proper_tap.calls[id].has_bias, "{id}");
    }

    // GELU between the linear layers of the MLP.
    let worst = |tap: &Recorder, gelu: fn(f64) -> f64| {
        let before = values(&tap.get("mm0.img.mlp.fc1").output);
        let after = values(&tap.get("mm0.img.mlp.fc2").input);
        let difference = |(x, y): (&f32, &f32)| (gelu(f64::from(*x)) - f64::from(*y)).abs();
        before.iter().zip(&after).map(difference).fold(0.0, f64::max)
    };
    assert!(worst(&proper_tap, naive_gelu_tanh) < 2e-6);
    assert!(worst(&kit_tap, naive_gelu_erf) < 2e-6);
    assert!(worst(&proper_tap, naive_gelu_erf) > 1e-4 && worst(&kit_tap, naive_gelu_tanh) > 1e-4);

    // Timesteps and sinusoids in half precision: 857.692 becomes 857.5.
    let half = |x: f32| f16::from_f32(x);
    for i in [0, 1, 17, 127] {
        let frequency = half((-(10_000.0_f32.ln()) * i as f32 / 128.0).exp());
        let angle = (half(857.5) * frequency).to_f32();
        assert_eq!(sinusoid_f16(857.692)[i], half(angle.cos()).to_f32());
        assert_eq!(sinusoid_f16(857.692)[128 + i], half(angle.sin()).to_f32());
        let exact = 857.692_f32 * (-(10_000.0_f32.ln()) * i as f32 / 128.0).exp();
        assert_eq!(sinusoid(857.692)[i], exact.cos());
        assert_eq!(sinusoid(857.692)[128 + i], exact.sin());
    }
    let temb = |model: &Mmdit| model.embed(&x, &[857.692; 2], &c, &mut Identity).unwrap().temb;
    assert!(relative_error(&temb(&kit), &temb(&proper)) > 1e-4);
}
