//! What the boundary of native plugins costs: the same rounder, linked into this program and loaded from a library.
//!
//! ```sh
//! cargo bench -p taq-tests --bench native_boundary -- [OUT IN ITERS]      default: 6144 1536 12
//! ```
//!
//! The code of a step (`tests/native/src/soft.rs`: soft rounding and Adam on slices, one thread) is the same on both sides,
//! and so is the error it learns by. Loaded, every step also goes through the C ABI. The two take turns, and the medians of
//! their steps are compared.

#![allow(clippy::print_stdout)] // its output is what it is for

use std::cell::RefCell;
use std::time::Instant;

use taq_core::mlx_rs::{Array, Device, transforms};
use taq_core::quant::{Clipping, GridParams, QuantizedLayer};
use taq_core::registry::Registry;
use taq_core::{Batch, BlockJob, Context, LayerGradients, Reconstruction, Result};
use taq_test_plugins::soft::Variables;
use taq_tests::linear::Linear;
use taq_tests::native;

const ROWS: usize = 256;
const BATCH: usize = 32;

/// Notes when it was asked.
struct Timed {
    linear: Linear,
    asked: RefCell<Vec<Instant>>,
}

impl Reconstruction for Timed {
    fn rows(&self) -> usize {
        Reconstruction::rows(&self.linear)
    }

    fn step(&self, row: usize) -> usize {
        self.linear.step(row)
    }

    fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
        self.linear.inputs(rows, visit)
    }

    fn loss_and_grads(
        &self,
        layers: &[QuantizedLayer],
        batch: Batch<'_>,
    ) -> Result<(Array, Vec<LayerGradients>)> {
        self.asked.borrow_mut().push(Instant::now());
        self.linear.loss_and_grads(layers, batch)
    }

    fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
        self.linear.held_out_loss(layers)
    }
}

/// The rounder as it would be linked in: the same steps, without the ABI between.
fn linked(job: &BlockJob<'_>, iters: usize) -> Result<Vec<i8>> {
    let layer = &job.layers[0];
    let (weight, shape) = taq_core::quant::to_matrix("weight", &layer.weight)?;
    let start = GridParams::fit(&weight, shape, &layer.grid, Clipping::Mse)?;
    let layout = layer.grid.layout(shape)?;
    let grid = taq_plugin::Grid {
        bits: layer.grid.bits,
        symmetric: layer.grid.symmetric,
        group_len: layout.group_len,
        groups: layout.groups,
    };
    let mut variables = Variables::new(&weight, grid, &start.scale, &start.zero_point);
    for at in 1..=iters {
        let rows: Vec<usize> = (0..BATCH).map(|i| (at * BATCH + i) % ROWS).collect();
        let weight = Array::from_slice(&variables.values, &shape.map(|n| n as i32));
        let quantized = QuantizedLayer { weight, input: layer.input.clone(), bias: None };
        let batch = Batch { rows: &rows, drop: None };
        let (loss, gradients) = job.reconstruction.loss_and_grads(&[quantized], batch)?;
        let gradient = gradients[0].weight.contiguous()?;
        transforms::eval([&loss, &gradient])?;
        variables.step(gradient.try_as_slice::<f32>().expect("f32"), at);
    }
    Ok(variables.rounded().weight_int)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    Device::set_default(&Device::cpu());
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let [outputs, inputs, iters] = numbers.try_into().unwrap_or([6144, 1536, 12]);
    let linear = Linear::new(outputs as i32, inputs as i32, ROWS as i32)?;
    let (block, layers) = linear.job()?;
    let timed = Timed { linear, asked: RefCell::default() };
    let job = BlockJob { block: &block, layers: &layers, reconstruction: &timed };
    let mut registry = Registry::linked()?;
    registry.load(&native::rust("taq_test_plugins"))?;
    let settings = serde_json::json!({ "iters": iters, "batch_size": BATCH });
    let rounder = registry.rounder("soft", &settings)?;
    // Times between two questions: whole steps, without the work before the first one.
    let steps = || -> Vec<f64> {
        let asked = timed.asked.take();
        asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0).collect()
    };
    let (mut inside, mut through) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let integers = linked(&job, iters)?;
        inside.extend(steps());
        let loaded = rounder.round(&job, &Context::quiet(0))?;
        through.extend(steps());
        assert!(loaded.layers[0].weight_int == integers, "both must do the same");
    }
    let (inside, through) = (median(inside), median(through));
    println!("{outputs} × {inputs}, {BATCH} rows a step, {} steps each, medians", 3 * (iters - 1));
    println!("linked in              {inside:8.1} ms a step");
    println!("native library         {through:8.1} ms a step");
    println!("overhead               {:8.1} %", 100.0 * (through / inside - 1.0));
    Ok(())
}
