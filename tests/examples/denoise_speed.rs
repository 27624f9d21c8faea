//! How long one call of the transformer takes quantized (W4A8) and in full precision, what of it the linear layers take,
//! and what memory it needs. The integers are random: their speed and size do not depend on what they are.
//!
//! `cargo run --release -p taq-tests --example denoise_speed -- [batch] [settings as JSON] [sides of latents] [subject …]`
//!
//! Subjects: `w4a8`, with integers on the CPU and packed weights on a GPU; `w4`, the same with modulation and embeddings of
//! 4 bits too; `simulated`, the same with weights as numbers;
//! `full`, in the model's element type; `linear`, what of that the linear layers take; `decode`; `products`, single layers of
//! the model's sizes in different ways; `compare`, how far layers with packed weights are from simulated ones. Default:
//! `w4a8 full linear decode`. For the memory of one alone, run it alone. Sides are separated by commas; default: the model's.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use taq_core::mlx_rs::{Array, Dtype, memory, ops, random};
use taq_core::pipeline::{ActivationPlan, IntegerTap, PackedTap, QuantizedLayers, QuantizedTap};
use taq_core::quant::{Grid, InputGrids, PackedLinear, PackedMatrix, QuantizedLinear, WeightOnly};
use taq_core::registry::Registry;
use taq_core::{
    Conditioning, Identity, LayerSpec, LinearCall, Model, ModelSpec, Result, RoundedLayer, Tap,
    WeightOnlySpec,
};
use taq_plugins as _;
use taq_tests::both::Both;

/// Calls timed, after two more; the median counts.
const CALLS: usize = 15;

/// Products of one kind that are timed together.
const PRODUCTS: usize = 50;

/// Evaluates every input before the call and every output after it, and adds up the time between.
#[derive(Default)]
struct Clock {
    linear: Duration,
    calls: usize,
}

impl Tap for Clock {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        call.input.eval()?;
        let start = Instant::now();
        let output = call.compute()?;
        output.eval()?;
        self.linear += start.elapsed();
        self.calls += 1;
        Ok(output)
    }
}

/// Milliseconds: median, least and most.
struct Times([f64; 3]);

fn timed(mut call: impl FnMut() -> Result<Array>) -> Result<Times> {
    let mut times = Vec::new();
    for at in 0..CALLS + 2 {
        if at == 2 {
            memory::clear_cache()?;
            memory::reset_peak_memory()?;
        }
        let start = Instant::now();
        call()?.eval()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut times = times.split_off(2);
    times.sort_by(f64::total_cmp);
    Ok(Times([times[CALLS / 2], times[0], times[CALLS - 1]]))
}

fn report(name: &str, Times([median, least, most]): Times) -> Result<()> {
    println!(
        "{name:<12} {median:8.2} ms ({least:.2} to {most:.2}); MLX's arrays at most {:.0} MB, {:.0} MB after; {:.0} MB resident",
        memory::peak_memory()? as f64 / 1e6,
        memory::active_memory()? as f64 / 1e6,
        resident()
    );
    Ok(())
}

/// One timestep.
fn plan() -> ActivationPlan {
    ActivationPlan { timesteps: vec![500.0], ..Default::default() }
}

/// The grid of every input: 8 bits.
fn input() -> Result<InputGrids> {
    InputGrids::new(vec![8], &[0.05])
}

/// A number of 4 bits, as good as random: by a period, sums over inputs would cancel.
fn integer(index: usize) -> i8 {
    let mixed = (index as u32).wrapping_mul(0x9e37_79b1);
    ((mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca77) >> 28) as i8 - 8
}

/// A weight of 4 bits, one step size and zero point for each output.
fn weight(out_features: usize, in_features: usize) -> Result<RoundedLayer> {
    Ok(RoundedLayer {
        grid: Grid::channel(4)?,
        shape: [out_features, in_features],
        weight_int: (0..out_features * in_features).map(integer).collect(),
        scale: vec![0.05 / (in_features as f32).sqrt(); out_features],
        zero_point: vec![-0.5; out_features],
        learned: None,
    })
}

/// The layers, and those in `weight_only`, as integers; and their bytes.
fn integers(spec: &ModelSpec, weight_only: &[WeightOnlySpec]) -> Result<(Box<dyn Tap>, usize)> {
    let mut tap = IntegerTap::new(&plan());
    for layer in spec.layers() {
        let rounded = weight(layer.out_features, layer.in_features)?;
        tap.insert(&layer.id, QuantizedLinear::new(&rounded, &input()?)?);
    }
    for layer in weight_only {
        let rounded = weight(layer.out_features, layer.in_features)?;
        tap.insert_weight_only(&layer.id, WeightOnly::new(&rounded)?);
    }
    let size = tap.size();
    Ok((Box::new(tap), size))
}

/// The same with packed weights.
fn packed(spec: &ModelSpec, weight_only: &[WeightOnlySpec], dtype: Dtype) -> Result<(PackedTap, usize)> {
    let mut tap = PackedTap::new(&plan());
    for layer in spec.layers() {
        let rounded = weight(layer.out_features, layer.in_features)?;
        tap.insert(&layer.id, PackedLinear::new(&rounded, &input()?, dtype)?);
    }
    for layer in weight_only {
        let rounded = weight(layer.out_features, layer.in_features)?;
        tap.insert_weight_only(&layer.id, PackedMatrix::new(&rounded, dtype)?);
    }
    let size = tap.size();
    Ok((tap, size))
}

fn simulated(spec: &ModelSpec, dtype: Dtype) -> Result<QuantizedLayers> {
    let layer = |layer: &LayerSpec| {
        let quantized =
            weight(layer.out_features, layer.in_features)?.quantized(&input()?)?.as_dtype(dtype)?;
        quantized.weight.eval()?;
        Ok((layer.id.clone(), quantized))
    };
    spec.layers().map(layer).collect()
}

/// Every size of layer: in the element type, packed with groups of 128 and of 64, and unpacked for each product.
fn products(spec: &ModelSpec, rows: i32, dtype: Dtype) -> Result<()> {
    let shapes: BTreeSet<_> = spec.layers().map(|l| (l.out_features as i32, l.in_features as i32)).collect();
    for (outputs, inputs) in shapes {
        let normal = |shape: &[i32]| random::normal::<f32>(shape, None, None, None)?.as_dtype(dtype);
        let (x, w) = (normal(&[rows, inputs])?, normal(&[outputs, inputs])?);
        let line = |name: &str, product: &dyn Fn() -> Result<Array>| {
            let many = || (0..PRODUCTS).map(|_| product()).collect::<Result<Vec<_>>>();
            taq_core::mlx_rs::transforms::eval(&many()?)?;
            let start = Instant::now();
            taq_core::mlx_rs::transforms::eval(&many()?)?;
            let each = start.elapsed().as_secs_f64() / PRODUCTS as f64;
            let flops = 2.0 * f64::from(rows) * f64::from(outputs) * f64::from(inputs) / each;
            println!(
                "{rows} × {inputs} → {outputs}, {name:<20} {:7.3} ms, {:6.1} TFLOP/s",
                each * 1e3,
                flops / 1e12
            );
            Ok::<(), taq_core::Error>(())
        };
        line("whole", &|| Ok(x.matmul(w.t())?))?;
        for group in [128, 64].into_iter().filter(|g| inputs % g == 0) {
            let (words, scales, biases) = ops::quantize(&w, group, 4)?;
            line(&format!("packed, groups of {group}"), &|| {
                Ok(ops::quantized_matmul(&x, &words, &scales, &biases, true, group, 4)?)
            })?;
            line(&format!("unpacked, {group}"), &|| {
                Ok(x.matmul(ops::dequantize(&words, &scales, &biases, group, 4)?.t())?)
            })?;
        }
    }
    Ok(())
}

/// Resident memory of the process in MB.
fn resident() -> f64 {
    memory_stats::memory_stats().map_or(f64::NAN, |m| m.physical_mem as f64 / 1e6)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let batch: i32 = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(16);
    let settings = arguments.next().map_or(serde_json::Value::Null, |a| a.parse().unwrap_or_default());
    let sides = arguments.next().unwrap_or_default();
    let sides: Vec<i32> = sides.split(',').filter_map(|a| a.parse().ok()).collect();
    let mut subjects: Vec<String> = arguments.collect();
    if subjects.is_empty() {
        subjects = ["w4a8", "full", "linear", "decode"].map(String::from).to_vec();
    }
    let start = Instant::now();
    let model: Box<dyn Model> = Registry::linked()?.model("sd3", &settings)?;
    let loaded = start.elapsed().as_secs_f64() * 1e3;
    let (spec, dtype) = (model.spec(), model.dtype());
    println!("load         {loaded:8.1} ms, {dtype:?}, {:.0} MB resident", resident());

    let start = Instant::now();
    let one = model.condition(&["cat face".into()])?;
    println!("one prompt   {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let conditioning: Conditioning = one.rows(&vec![0; batch as usize])?;
    let (height, width) = model.defaults().image_size;
    let latent = |pixels: usize| (pixels / spec.vae_factor) as i32;
    let sizes = match sides.is_empty() {
        true => vec![(latent(height), latent(width))],
        false => sides.into_iter().map(|side| (side, side)).collect(),
    };
    for (h, w) in sizes {
        println!("             batch of {batch}, latents of {h} × {w}, {} text tokens", one.tokens.dim(1));
        let x = random::normal::<f32>(&[batch, h, w, spec.latent_channels as i32], None, None, None)?;
        for subject in &subjects {
            measure(&*model, subject, &x, &conditioning)?;
            memory::clear_cache()?;
        }
    }
    Ok(())
}

fn measure(model: &dyn Model, subject: &str, x: &Array, conditioning: &Conditioning) -> Result<()> {
    let (spec, dtype) = (model.spec(), model.dtype());
    let timesteps = vec![500.0; x.dim(0) as usize];
    let denoise = |tap: &mut dyn Tap| timed(|| model.denoise(x, &timesteps, conditioning, tap));
    match subject {
        "w4a8" | "w4" => {
            let weight_only = if subject == "w4" { &spec.weight_only[..] } else { &[] };
            let (mut tap, size): (Box<dyn Tap>, usize) = match mlx_host::on_cpu() {
                true => integers(spec, weight_only)?,
                false => {
                    let (tap, size) = packed(spec, weight_only, dtype)?;
                    (Box::new(tap), size)
                }
            };
            let others = weight_only.iter().map(|l| 2 * l.in_features * l.out_features);
            let halves =
                spec.layers().map(|l| 2 * l.in_features * l.out_features).chain(others).sum::<usize>();
            println!(
                "weights      {:8.1} MB for {:.1} MB of half precision",
                size as f64 / 1e6,
                halves as f64 / 1e6
            );
            report(subject, denoise(&mut *tap)?)?;
        }
        "simulated" => {
            let (plan, layers) = (plan(), simulated(spec, dtype)?);
            report("simulated", denoise(&mut QuantizedTap::new(&plan, &layers))?)?;
        }
        "full" => report("full", denoise(&mut Identity)?)?,
        "linear" => {
            let mut clock = Clock::default();
            let Times([watched, ..]) = denoise(&mut clock)?;
            println!(
                "  linear     {:8.2} ms in {} layers (of {watched:.2} ms with an evaluation around each)",
                clock.linear.as_secs_f64() * 1e3 / (CALLS + 2) as f64,
                clock.calls / (CALLS + 2),
            );
        }
        "decode" => {
            let half: Vec<i32> = (0..x.dim(0) / 2).collect();
            let latents = x.take_axis(Array::from_slice(&half, &[half.len() as i32]), 0)?;
            report("decode", timed(|| model.decode(&latents))?)?;
        }
        "compare" => {
            let (plan, layers) = (plan(), simulated(spec, dtype)?);
            let (mut packed, _) = packed(spec, &[], dtype)?;
            let mut both = Both::new(&mut packed, QuantizedTap::new(&plan, &layers));
            model.denoise(x, &timesteps, conditioning, &mut both)?.eval()?;
            println!("compare      layers are off by at most {:.2e}", both.worst);
        }
        "products" => products(spec, x.dim(0) * (x.dim(1) / 2) * (x.dim(2) / 2), dtype)?,
        other => println!("there is no subject `{other}`"),
    }
    Ok(())
}
