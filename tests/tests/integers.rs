//! The model that computes with integers, and the one whose weights stay packed, against the one whose layers are simulated:
//! layers, velocities and images.

use std::collections::HashMap;

use mlx_rs::{Array, Dtype, random};
use taq_core::metrics::relative_l2_arrays;
use taq_core::pipeline::{ActivationPlan, IntegerTap, PackedTap, QuantizedLayers, QuantizedTap};
use taq_core::quant::{
    Clipping, Granularity, Grid, InputGrids, PackedLinear, PackedMatrix, QuantizedLinear, WeightOnly,
    nearest, to_vec,
};
use taq_core::registry::Registry;
use taq_core::{
    Conditioning, LayerId, LearnedInput, LinearCall, Model, Result, RoundedLayer, Tap, WeightOnlySpec,
};
use taq_plugins as _;
use taq_tests::both::Both;
use taq_tests::golden::Golden;

/// Timesteps of the plan.
const TIMESTEPS: [f32; 4] = [1000.0, 750.0, 500.0, 200.0];

fn model(settings: serde_json::Value) -> Box<dyn Model> {
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    Registry::linked().unwrap().model("sd3", &settings).unwrap()
}

/// Largest magnitude and mean by channel of what every layer sees, by call.
#[derive(Default)]
struct Watch(HashMap<LayerId, Vec<(f32, Vec<f32>)>>);

impl Tap for Watch {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        let absmax = to_vec(&call.input.abs()?.max(None)?)?[0];
        let mean = to_vec(&call.input.mean_axes(&[0, 1], None)?)?;
        self.0.entry(call.layer.id.clone()).or_default().push((absmax, mean));
        call.compute()
    }
}

/// What a velocity is computed from.
struct Inputs {
    x: Array,
    conditioning: Conditioning,
}

impl Inputs {
    fn velocity(&self, model: &dyn Model, timesteps: &[f32], tap: &mut dyn Tap) -> Array {
        let v = model.denoise(&self.x, timesteps, &self.conditioning, tap).unwrap();
        v.eval().unwrap();
        v
    }
}

/// The embedded model with a prompt and the empty one, and the tiny one with diffusers' tensors.
fn models() -> Vec<(&'static str, Box<dyn Model>, Inputs)> {
    let emoji = model(serde_json::json!({}));
    let conditioning = emoji.condition(&["red heart".to_owned(), String::new()]).unwrap();
    let x = random::normal::<f32>(&[2, 16, 16, 16], None, None, &random::key(5).unwrap()).unwrap();
    let golden = Golden::open("tiny-sd3/golden.safetensors");
    let tiny = taq_tests::paths::golden().join("tiny-sd3");
    let tiny_inputs = Inputs {
        x: golden.nhwc("latent_nchw"),
        conditioning: Conditioning {
            tokens: golden.tensor("prompt_embeds"),
            pooled: golden.tensor("pooled"),
        },
    };
    vec![
        ("emoji-sd3", emoji, Inputs { x, conditioning }),
        ("tiny-sd3", model(serde_json::json!({ "source": tiny.to_str().unwrap() })), tiny_inputs),
    ]
}

/// A plan of 8-bit inputs with shifts before fc2, and weights of 4 bits (6 in some layers) with everything that can be
/// learned of an input.
fn quantize(model: &dyn Model, inputs: &Inputs) -> (ActivationPlan, HashMap<LayerId, RoundedLayer>) {
    let mut watch = Watch::default();
    for timestep in TIMESTEPS {
        inputs.velocity(model, &[timestep; 2], &mut watch);
    }
    let mut plan = ActivationPlan { timesteps: TIMESTEPS.to_vec(), ..Default::default() };
    let mut layers = HashMap::new();
    for (index, spec) in model.spec().layers().enumerate() {
        let seen = &watch.0[&spec.id];
        let scale: Vec<f32> = seen.iter().map(|(absmax, _)| absmax / 127.0).collect();
        let grids = InputGrids::new(vec![8; scale.len()], &scale).unwrap();
        let grid = Grid::channel(if index % 5 == 0 { 6 } else { 4 }).unwrap();
        let mut rounded = nearest(&model.weight(&spec.id).unwrap(), &grid, Clipping::Absmax).unwrap();
        if spec.post_gelu {
            rounded.learned = Some(LearnedInput {
                scale: scale.iter().map(|s| 0.9 * s).collect(),
                shift: seen.iter().flat_map(|(_, mean)| mean.clone()).collect(),
                multiplier: (0..spec.in_features).map(|i| [1.0, 1.0, 2.0][i % 3]).collect(),
                bias: vec![0.01; scale.len() * spec.out_features],
            });
        }
        plan.inputs.insert(spec.id.clone(), grids);
        layers.insert(spec.id.clone(), rounded);
    }
    (plan, layers)
}

/// The simulation in f64: weights and inputs on their grids as real numbers, every output rounded once. An f32 product
/// is not good enough to compare a whole model with: its last bit decides now and then to which of two grid points the
/// next layer rounds an input, and from layer to layer more of them.
struct Exact<'a> {
    plan: &'a ActivationPlan,
    layers: &'a HashMap<LayerId, RoundedLayer>,
    steps: Vec<usize>,
}

impl Tap for Exact<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.steps = timesteps.iter().map(|&t| self.plan.step(t)).collect();
        Ok(())
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        let rounded = &self.layers[&call.layer.id];
        let [outputs, inputs] = rounded.shape;
        let layer = rounded.quantized(&self.plan.inputs[&call.layer.id])?;
        let values = |a: &Option<Array>, len: usize, otherwise: f32| match a {
            Some(a) => to_vec(a).unwrap(),
            None => vec![otherwise; len],
        };
        let steps = layer.input.steps();
        let (scale, shift) = (to_vec(&layer.input.scale)?, values(&layer.input.shift, steps * inputs, 0.0));
        let multiplier = values(&layer.input.multiplier, inputs, 1.0);
        let bias = values(&layer.bias, steps * outputs, 0.0);
        let own = to_vec(call.bias.unwrap())?;
        let weight: Vec<f64> = (0..outputs * inputs)
            .map(|i| {
                let q = f64::from(rounded.weight_int[i]) - f64::from(rounded.zero_point[i / inputs]);
                q * f64::from(rounded.scale[i / inputs])
            })
            .collect();
        let x = to_vec(call.input)?;
        let tokens = x.len() / inputs / self.steps.len();
        let mut out = Vec::with_capacity(x.len() / inputs * outputs);
        for (row, x) in x.chunks(inputs).enumerate() {
            let step = self.steps[row / tokens];
            let on_grid = |(i, &x): (usize, &f32)| {
                let (z, m, s) = (shift[step * inputs + i], multiplier[i], scale[step]);
                let q = ((x - z) / (s * m)).clamp(-128.0, 127.0).round_ties_even();
                f64::from(q) * f64::from(s) + f64::from(z / m)
            };
            let x: Vec<f64> = x.iter().enumerate().map(on_grid).collect();
            out.extend(weight.chunks(inputs).enumerate().map(|(o, w)| {
                let sum: f64 = w.iter().zip(&x).map(|(w, x)| w * x).sum();
                (sum + f64::from(own[o]) + f64::from(bias[step * outputs + o])) as f32
            }));
        }
        let mut shape = call.input.shape().to_vec();
        shape[call.input.ndim() - 1] = outputs as i32;
        Ok(Array::from_slice(&out, &shape))
    }
}

fn integer_tap(plan: &ActivationPlan, rounded: &HashMap<LayerId, RoundedLayer>) -> IntegerTap {
    let mut tap = IntegerTap::new(plan);
    for (id, rounded) in rounded {
        tap.insert(id, QuantizedLinear::new(rounded, &plan.inputs[id]).unwrap());
    }
    tap
}

/// Whole layers would compare with themselves: there must be none.
fn packed_tap(plan: &ActivationPlan, rounded: &HashMap<LayerId, RoundedLayer>, dtype: Dtype) -> PackedTap {
    let mut tap = PackedTap::new(plan);
    for (id, rounded) in rounded {
        let layer = PackedLinear::new(rounded, &plan.inputs[id], dtype).unwrap();
        assert!(layer.is_packed(), "{id}");
        tap.insert(id, layer);
    }
    tap
}

/// Both ways to run quantized layers, by name.
fn taps(
    plan: &ActivationPlan,
    rounded: &HashMap<LayerId, RoundedLayer>,
) -> [(&'static str, Box<dyn Tap>); 2] {
    let packed = packed_tap(plan, rounded, Dtype::Float32);
    [("integers", Box::new(integer_tap(plan, rounded))), ("packed", Box::new(packed))]
}

fn simulated(plan: &ActivationPlan, rounded: &HashMap<LayerId, RoundedLayer>) -> QuantizedLayers {
    let layer = |(id, r): (&LayerId, &RoundedLayer)| (id.clone(), r.quantized(&plan.inputs[id]).unwrap());
    rounded.iter().map(layer).collect()
}

#[test]
fn the_velocity_is_that_of_the_simulation() {
    for (name, model, inputs) in models() {
        let (plan, rounded) = quantize(&*model, &inputs);
        let mut integers = integer_tap(&plan, &rounded);
        let mut exact = Exact { plan: &plan, layers: &rounded, steps: vec![] };
        // A batch of one timestep, and one that mixes two.
        for timesteps in [[1000.0; 2], [500.0; 2], [1000.0, 200.0]] {
            let ours = inputs.velocity(&*model, &timesteps, &mut integers);
            let theirs = inputs.velocity(&*model, &timesteps, &mut exact);
            let off = relative_l2_arrays(&ours, &theirs).unwrap();
            assert!(off < 1e-4, "{name} at {timesteps:?}: {off:e}");
            let full = inputs.velocity(&*model, &timesteps, &mut taq_core::Identity);
            let error = relative_l2_arrays(&ours, &full).unwrap();
            assert!(error > 1e-3, "{name} at {timesteps:?}: nothing was quantized, {error:e}");
        }
    }
}

#[test]
fn every_layer_is_that_of_the_simulation_in_f32() {
    for (name, model, inputs) in models() {
        let (plan, rounded) = quantize(&*model, &inputs);
        let layers = simulated(&plan, &rounded);
        for (kind, mut ours) in taps(&plan, &rounded) {
            let mut both = Both::new(&mut *ours, QuantizedTap::new(&plan, &layers));
            for timestep in TIMESTEPS {
                inputs.velocity(&*model, &[timestep; 2], &mut both);
            }
            inputs.velocity(&*model, &[TIMESTEPS[0], TIMESTEPS[3]], &mut both);
            assert!(both.worst > 0.0 && both.worst < 1e-5, "{name}, {kind}: {:e}", both.worst);
        }
    }
}

#[test]
fn dynamic_step_sizes_are_those_of_the_simulation() {
    for (name, model, inputs) in models() {
        let (plan, rounded) = quantize(&*model, &inputs);
        let fixed = inputs.velocity(&*model, &[500.0; 2], &mut integer_tap(&plan, &rounded));
        let plan = plan.with_dynamic(true);
        let layers = simulated(&plan, &rounded);
        for (kind, mut ours) in taps(&plan, &rounded) {
            let mut both = Both::new(&mut *ours, QuantizedTap::new(&plan, &layers));
            let dynamic = inputs.velocity(&*model, &[500.0; 2], &mut both);
            assert!(both.worst > 0.0 && both.worst < 1e-5, "{name}, {kind}: {:e}", both.worst);
            let change = relative_l2_arrays(&dynamic, &fixed).unwrap();
            assert!(change > 1e-3, "{name}, {kind}: nothing was dynamic");
        }
    }
}

#[test]
fn images_are_those_of_the_simulation() {
    let (_, model, inputs) = models().remove(0);
    let (plan, rounded) = quantize(&*model, &inputs);
    let image = |tap: &mut dyn Tap| {
        let mut x = inputs.x.clone();
        for (at, &timestep) in TIMESTEPS.iter().enumerate() {
            let next = TIMESTEPS.get(at + 1).copied().unwrap_or(0.0);
            let v = model.denoise(&x, &[timestep; 2], &inputs.conditioning, tap).unwrap();
            x = x.add(v.multiply(Array::from_f32((next - timestep) / 1000.0)).unwrap()).unwrap();
        }
        to_vec(&model.decode(&x).unwrap()).unwrap()
    };
    let ours = image(&mut integer_tap(&plan, &rounded));
    let theirs = image(&mut Exact { plan: &plan, layers: &rounded, steps: vec![] });
    let off = ours.iter().zip(&theirs).filter(|(a, b)| (*a - *b).abs() * 255.0 > 1.0).count();
    assert!(off * 1000 <= ours.len(), "{off} of {} values differ by more than a grey level", ours.len());
    let contrast = ours.iter().fold(0.0_f32, |m, x| m.max(*x)) - ours.iter().fold(1.0_f32, |m, x| m.min(*x));
    assert!(contrast > 0.5, "an image without contrast shows nothing: {contrast}");
}

/// Every layer whose input is not quantized, its weight in groups of 64.
fn weight_only(model: &dyn Model, bits: u8) -> Vec<(LayerId, RoundedLayer)> {
    let rounded = |layer: &WeightOnlySpec| {
        let group =
            if layer.in_features.is_multiple_of(64) { Granularity::Group(64) } else { Granularity::Channel };
        let grid = Grid::new(bits, group, false).unwrap();
        (layer.id.clone(), nearest(&model.weight(&layer.id).unwrap(), &grid, Clipping::Absmax).unwrap())
    };
    model.spec().weight_only.iter().map(rounded).collect()
}

#[test]
fn modulation_and_embeddings_may_be_integers_too() {
    for (name, model, inputs) in models() {
        let (plan, _) = quantize(&*model, &inputs);
        let layers = QuantizedLayers::new();
        let mut errors = Vec::new();
        for bits in [4, 8] {
            let rounded = weight_only(&*model, bits);
            assert!(rounded.len() > 2 * model.spec().blocks.len(), "{name}: {} layers", rounded.len());
            let (mut tap, mut packed) = (IntegerTap::new(&plan), PackedTap::new(&plan));
            for (id, rounded) in &rounded {
                tap.insert_weight_only(id, WeightOnly::new(rounded).unwrap());
                packed.insert_weight_only(id, PackedMatrix::new(rounded, Dtype::Float32).unwrap());
            }
            let weights = rounded.iter().map(|(id, r)| (id.clone(), r.dequantize().unwrap())).collect();
            let mut simulated = QuantizedTap::new(&plan, &layers).with_weight_only(&weights);
            let ours = inputs.velocity(&*model, &[500.0; 2], &mut tap);
            let theirs = inputs.velocity(&*model, &[500.0; 2], &mut simulated);
            assert_eq!(to_vec(&ours).unwrap(), to_vec(&theirs).unwrap(), "{name}, {bits} bits");
            let packed = inputs.velocity(&*model, &[500.0; 2], &mut packed);
            let off = relative_l2_arrays(&packed, &theirs).unwrap();
            assert!(off < 1e-5, "{name}, {bits} bits, packed: {off:e}");
            let full = inputs.velocity(&*model, &[500.0; 2], &mut taq_core::Identity);
            errors.push(relative_l2_arrays(&ours, &full).unwrap());
        }
        // Sixteen times the points: about a sixteenth of the error.
        assert!(errors[0] > 5.0 * errors[1] && errors[1] > 1e-5, "{name}: {errors:?}");
    }
}

/// Every linear layer of 4 bits, and without shifts, which take four bytes for each input and timestep; all other tensors
/// count as they are in the file.
#[test]
fn integers_take_less_than_three_tenths_of_the_transformer_in_half_precision() {
    let (_, model, inputs) = models().remove(0);
    let (plan, mut rounded) = quantize(&*model, &inputs);
    for (id, rounded) in &mut rounded {
        let grid = Grid::channel(4).unwrap();
        *rounded = nearest(&model.weight(id).unwrap(), &grid, Clipping::Absmax).unwrap();
    }
    let mut tap = integer_tap(&plan, &rounded);
    for (id, rounded) in weight_only(&*model, 4) {
        tap.insert_weight_only(&id, WeightOnly::new(&rounded).unwrap());
    }
    let checkpoint = model.checkpoint().unwrap();
    let packed: Vec<String> = checkpoint.modules.values().map(|m| format!("{m}.weight")).collect();
    let bytes = |kept: &dyn Fn(&String) -> bool| -> usize {
        checkpoint.tensors.iter().filter(|(name, _)| kept(name)).map(|(_, t)| t.bytes.len()).sum()
    };
    let (whole, size) = (bytes(&|_| true), tap.size() + bytes(&|name| !packed.contains(name)));
    assert!(10 * size < 3 * whole, "{size} bytes for {whole} of fp16");
}
