//! The transformer in half precision: near the one in f32, and half to the last tensor.

use mlx_rs::{Array, Dtype, random};
use taq_core::metrics::relative_l2_arrays;
use taq_core::pipeline::{ActivationPlan, IntegerTap, PackedTap, QuantizedLayers, QuantizedTap};
use taq_core::quant::{
    Clipping, Grid, InputGrids, PackedLinear, PackedMatrix, QuantizedLinear, WeightOnly, nearest,
};
use taq_core::registry::Registry;
use taq_core::{Conditioning, Identity, LayerId, LinearCall, Model, Result, Tap, WeightOnlyCall};
use taq_plugins as _;
use taq_tests::both::Both;
use taq_tests::golden::Golden;
use taq_tests::taq::{fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// The names of the types, and how far a velocity may be off for each bit of theirs: ten and seven, which is 5e-4 and 4e-3
/// for a single rounding.
const TYPES: [(&str, Dtype, f64); 2] =
    [("float16", Dtype::Float16, 4e-3), ("bfloat16", Dtype::Bfloat16, 3e-2)];

fn model(source: Option<&str>, dtype: &str) -> Box<dyn Model> {
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    let mut settings = serde_json::json!({ "dtype": dtype });
    if let Some(source) = source {
        settings["source"] = source.into();
    }
    Registry::linked().unwrap().model("sd3", &settings).unwrap()
}

/// Sees that what the layers compute with is of one type.
struct OfType<'a>(Dtype, &'a mut dyn Tap);

impl OfType<'_> {
    fn check<L>(&mut self, id: &LayerId, call: LinearCall<'_, L>, compute: Compute<L>) -> Result<Array> {
        for (what, array) in [("input", Some(call.input)), ("weight", Some(call.weight)), ("bias", call.bias)]
        {
            assert!(array.is_none_or(|a| a.dtype() == self.0), "{what} of {id}");
        }
        let output = compute(self.1, call)?;
        assert_eq!(output.dtype(), self.0, "output of {id}");
        Ok(output)
    }
}

type Compute<L> = fn(&mut dyn Tap, LinearCall<'_, L>) -> Result<Array>;

impl Tap for OfType<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.1.begin(timesteps)
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        self.check(&call.layer.id, call, |tap, call| tap.linear(call))
    }

    fn weight_only(&mut self, call: WeightOnlyCall<'_>) -> Result<Array> {
        self.check(&call.layer.id, call, |tap, call| tap.weight_only(call))
    }
}

fn wide(array: &Array) -> Array {
    array.as_dtype(Dtype::Float32).unwrap()
}

/// Sources with a latent and what it is conditioned on.
fn sources() -> [(Option<String>, Array, Conditioning); 2] {
    let x = random::normal::<f32>(&[2, 16, 16, 16], None, None, &random::key(5).unwrap()).unwrap();
    let emoji = model(None, "float32").condition(&["red heart".to_owned(), String::new()]).unwrap();
    let golden = Golden::open("tiny-sd3/golden.safetensors");
    let tiny = Conditioning { tokens: golden.tensor("prompt_embeds"), pooled: golden.tensor("pooled") };
    let folder = taq_tests::paths::golden().join("tiny-sd3");
    [(None, x, emoji), (Some(folder.to_str().unwrap().to_owned()), golden.nhwc("latent_nchw"), tiny)]
}

#[test]
fn velocities_are_near_those_in_single_precision() {
    for (source, x, conditioning) in sources() {
        let name = source.as_deref().unwrap_or("emoji-sd3");
        let full = model(source.as_deref(), "float32");
        for (dtype, element, bound) in TYPES {
            let half = model(source.as_deref(), dtype);
            assert_eq!((half.dtype(), &half.spec().fingerprint), (element, &full.spec().fingerprint));
            for timesteps in [[900.0, 900.0], [500.0, 20.0]] {
                let velocity = |model: &dyn Model, tap: &mut dyn Tap| {
                    model.denoise(&x, &timesteps, &conditioning, tap).unwrap()
                };
                let expected = velocity(&*full, &mut Identity);
                // Types are only ever widened, so that what comes out in half precision was so all the way.
                let found = velocity(&*half, &mut OfType(element, &mut Identity));
                assert_eq!(found.dtype(), element);
                let off = relative_l2_arrays(&wide(&found), &expected).unwrap();
                assert!(off > 1e-6 && off < bound, "{name} in {dtype} at {timesteps:?}: {off:e}");
            }
        }
        for layer in full.spec().layers() {
            assert_eq!(full.weight(&layer.id).unwrap().dtype(), Dtype::Float32);
        }
    }
}

/// Every way to run quantized layers gives the type it was given, and about the same numbers.
#[test]
fn quantized_layers_keep_the_type() {
    let (_, x, conditioning) = sources().into_iter().next().unwrap();
    let full = model(None, "float32");
    let plan = ActivationPlan {
        timesteps: vec![500.0],
        inputs: full
            .spec()
            .layers()
            .map(|l| (l.id.clone(), InputGrids::new(vec![8], &[0.1]).unwrap()))
            .collect(),
        ..Default::default()
    };
    let mut packed = PackedTap::new(&plan);
    let mut layers = QuantizedLayers::new();
    let mut integers = IntegerTap::new(&plan);
    let element = Dtype::Float16;
    for layer in full.spec().layers() {
        let weight = full.weight(&layer.id).unwrap();
        let rounded = nearest(&weight, &Grid::channel(8).unwrap(), Clipping::Absmax).unwrap();
        let input = &plan.inputs[&layer.id];
        packed.insert(&layer.id, PackedLinear::new(&rounded, input, element).unwrap());
        integers.insert(&layer.id, QuantizedLinear::new(&rounded, input).unwrap());
        let simulated = rounded.quantized(input).unwrap().as_dtype(element).unwrap();
        layers.insert(layer.id.clone(), simulated);
    }
    for layer in &full.spec().weight_only {
        let weight = full.weight(&layer.id).unwrap();
        let rounded = nearest(&weight, &Grid::channel(8).unwrap(), Clipping::Absmax).unwrap();
        packed.insert_weight_only(&layer.id, PackedMatrix::new(&rounded, element).unwrap());
        integers.insert_weight_only(&layer.id, WeightOnly::new(&rounded).unwrap());
    }
    let half = model(None, "float16");
    let velocity = |tap: &mut dyn Tap| {
        let found = half.denoise(&x, &[500.0; 2], &conditioning, &mut OfType(element, tap)).unwrap();
        assert_eq!(found.dtype(), element);
    };
    for (name, tap) in [("packed", &mut packed as &mut dyn Tap), ("integers", &mut integers)] {
        // Layer by layer: from one to the next, inputs near the middle of two grid points go to the one or the other.
        let mut both = Both::new(tap, QuantizedTap::new(&plan, &layers));
        velocity(&mut both);
        assert!(both.worst > 0.0 && both.worst < 2e-2, "{name}: {:e}", both.worst);
    }
}

#[test]
fn a_run_made_in_single_precision_is_painted_in_half_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let at = ["--run", run.to_str().unwrap()];
    let half = ["--model-config", r#"{"dtype": "float16"}"#];
    let calibrate = ["calibrate", "--num-images", "1", "--steps", "2"];
    let (code, message) = fail(HOST, &[&calibrate[..], &at, &half].concat());
    assert_eq!(code, 2, "{message}");
    for part in ["`taq calibrate` computes in float32", "the model is in float16", "\"dtype\": \"float32\""] {
        assert!(folded(&message).contains(part), "{part}: {message}");
    }
    for stage in [&calibrate[..], &["observe"], &["decide"], &["round", "--rounder", "nearest"]] {
        succeed(HOST, &[stage, &at].concat());
    }
    let out = folder.path().join("out");
    let bench =
        ["bench", "--config", "fp,quantized", "--prompt", "red heart", "--out", out.to_str().unwrap()];
    succeed(HOST, &[&bench[..], &at, &half].concat());
    let text = std::fs::read_to_string(out.join("bench.json")).unwrap();
    assert!(text.contains("\"dtype\": \"float16\""), "{text}");
    assert!(std::fs::read_to_string(out.join("bench.md")).unwrap().contains("in float16 on the cpu"));
}
