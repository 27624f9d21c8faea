//! The model that computes with integers against the one whose layers are simulated: velocities and images.

use std::collections::HashMap;

use mlx_rs::{Array, ops, random};
use taq_core::metrics::relative_l2_arrays;
use taq_core::pipeline::{ActivationPlan, IntegerTap, QuantizedLayers, QuantizedTap};
use taq_core::quant::{Clipping, Grid, InputGrids, QuantizedLinear, nearest, to_vec};
use taq_core::registry::Registry;
use taq_core::{Conditioning, LayerId, LearnedInput, LinearCall, Model, Result, RoundedLayer, Tap};
use taq_plugins as _;

/// Timesteps of the plan.
const TIMESTEPS: [f32; 4] = [1000.0, 750.0, 500.0, 200.0];

fn model(settings: serde_json::Value) -> Box<dyn Model> {
    mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    Registry::linked().unwrap().model("sd3", &settings).unwrap()
}

fn models() -> Vec<(&'static str, Box<dyn Model>)> {
    let tiny = taq_tests::paths::golden().join("tiny-sd3");
    vec![
        ("emoji-sd3", model(serde_json::json!({}))),
        ("tiny-sd3", model(serde_json::json!({ "source": tiny.to_str().unwrap() }))),
    ]
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

/// The same noise and prompts for every row of the batch that a plan is made for, and their guidance.
struct Inputs {
    x: Array,
    conditioning: Conditioning,
}

impl Inputs {
    fn new(model: &dyn Model) -> Self {
        let prompts = ["red heart".to_owned(), String::new()];
        let (height, width) = model.defaults().image_size;
        let (factor, channels) = (model.spec().vae_factor, model.spec().latent_channels);
        let shape = [2, (height / factor) as i32, (width / factor) as i32, channels as i32];
        let key = random::key(5).unwrap();
        let x = random::normal::<f32>(&shape, None, None, &key).unwrap();
        Self { x, conditioning: model.condition(&prompts).unwrap() }
    }

    fn velocity(&self, model: &dyn Model, timestep: f32, tap: &mut dyn Tap) -> Array {
        let v = model.denoise(&self.x, &[timestep; 2], &self.conditioning, tap).unwrap();
        v.eval().unwrap();
        v
    }
}

/// A plan of 8-bit inputs with shifts before fc2, and weights of 4 bits (6 in some layers) with everything that can be
/// learned of an input.
fn quantize(model: &dyn Model, inputs: &Inputs) -> (ActivationPlan, Vec<(LayerId, RoundedLayer)>) {
    let mut watch = Watch::default();
    for timestep in TIMESTEPS {
        inputs.velocity(model, timestep, &mut watch);
    }
    let (mut plan, mut layers) =
        (ActivationPlan { timesteps: TIMESTEPS.to_vec(), inputs: HashMap::new() }, Vec::new());
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
        layers.push((spec.id.clone(), rounded));
    }
    (plan, layers)
}

#[test]
fn the_velocity_is_that_of_the_simulation() {
    for (name, model) in models() {
        let inputs = Inputs::new(&*model);
        let (plan, rounded) = quantize(&*model, &inputs);
        let mut integers = IntegerTap::new(&plan);
        let mut simulated = QuantizedLayers::new();
        for (id, rounded) in &rounded {
            integers.insert(id, QuantizedLinear::new(rounded, &plan.inputs[id]).unwrap());
            simulated.insert(id.clone(), rounded.quantized(&plan.inputs[id]).unwrap());
        }
        let mut simulated = QuantizedTap::new(&plan, &simulated);
        for timestep in TIMESTEPS {
            let ours = inputs.velocity(&*model, timestep, &mut integers);
            let theirs = inputs.velocity(&*model, timestep, &mut simulated);
            let off = relative_l2_arrays(&ours, &theirs).unwrap();
            eprintln!("{name} {timestep}: {off:e}");
            let exact = inputs.velocity(&*model, timestep, &mut taq_core::Identity);
            eprintln!("   quantization {:e}", relative_l2_arrays(&theirs, &exact).unwrap());
        }
        let mixed = |tap: &mut dyn Tap| model.denoise(&inputs.x, &[1000.0, 200.0], &inputs.conditioning, tap);
        let (ours, theirs) = (mixed(&mut integers).unwrap(), mixed(&mut simulated).unwrap());
        eprintln!("{name} mixed: {:e}", relative_l2_arrays(&ours, &theirs).unwrap());
        let halves = ops::concatenate(&[&ours, &theirs], 0).unwrap();
        assert_eq!(halves.dim(0), 4);
    }
}
