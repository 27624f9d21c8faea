//! How long one call of the transformer takes with integers (W4A8) and in full precision, what of it the linear layers take,
//! and what memory the process has. The integers are random: their speed and size do not depend on what they are.
//!
//! `cargo run --release -p taq-plugins --example denoise_speed -- [batch] [settings as JSON]`

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::{Duration, Instant};

use taq_core::mlx_rs::{Array, random};
use taq_core::pipeline::{ActivationPlan, IntegerTap};
use taq_core::quant::{Grid, InputGrids, QuantizedLinear};
use taq_core::registry::Registry;
use taq_core::{Conditioning, Identity, LayerSpec, LinearCall, ModelSpec, Result, RoundedLayer, Tap};
use taq_plugins as _;

/// Calls timed; the median counts.
const CALLS: usize = 15;

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

fn timed(mut call: impl FnMut() -> Result<Array>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let start = Instant::now();
        call()?.eval()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[CALLS / 2])
}

/// Weights of 4 bits and inputs of 8, one step size and zero point for each output; the plan has one timestep.
fn integers(spec: &ModelSpec) -> Result<IntegerTap> {
    let plan = ActivationPlan { timesteps: vec![500.0], inputs: Default::default() };
    let mut tap = IntegerTap::new(&plan);
    for layer in spec.layers() {
        let &LayerSpec { out_features, in_features, .. } = layer;
        let rounded = RoundedLayer {
            grid: Grid::channel(4)?,
            shape: [out_features, in_features],
            weight_int: (0..out_features * in_features).map(|i| (i * 7919 % 16) as i8 - 8).collect(),
            scale: vec![0.01; out_features],
            zero_point: vec![-0.5; out_features],
            learned: None,
        };
        tap.insert(&layer.id, QuantizedLinear::new(&rounded, &InputGrids::new(vec![8], &[0.05])?)?);
    }
    Ok(tap)
}

/// Resident memory of the process in MB.
fn resident() -> f64 {
    memory_stats::memory_stats().map_or(f64::NAN, |m| m.physical_mem as f64 / 1e6)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let batch: i32 = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(16);
    let settings = arguments.next().map_or(serde_json::Value::Null, |a| a.parse().unwrap_or_default());
    let start = Instant::now();
    let model = Registry::linked()?.model("sd3", &settings)?;
    let loaded = start.elapsed().as_secs_f64() * 1e3;
    println!("load         {loaded:7.1} ms, {:.0} MB resident", resident());

    let start = Instant::now();
    let one = model.condition(&["cat face".into()])?;
    println!("one prompt   {:7.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let conditioning: Conditioning = one.rows(&vec![0; batch as usize])?;
    let (height, width) = model.defaults().image_size;
    let spec = model.spec();
    let side = |pixels: usize| (pixels / spec.vae_factor) as i32;
    let x = random::normal::<f32>(
        &[batch, side(height), side(width), spec.latent_channels as i32],
        None,
        None,
        None,
    )?;
    let timesteps = vec![500.0; batch as usize];

    let mut tap = integers(spec)?;
    let halves = spec.layers().map(|l| 2 * l.in_features * l.out_features).sum::<usize>();
    println!(
        "integers     {:7.1} MB for {:.1} MB of fp16, {:.0} MB resident",
        tap.size() as f64 / 1e6,
        halves as f64 / 1e6,
        resident()
    );
    let w4a8 = timed(|| model.denoise(&x, &timesteps, &conditioning, &mut tap))?;
    let w4a8 = w4a8.as_secs_f64() * 1e3;
    println!("W4A8         {w4a8:7.1} ms at batch {batch}, {:.0} MB resident", resident());
    drop(tap);

    let whole = timed(|| model.denoise(&x, &timesteps, &conditioning, &mut Identity))?;
    let whole = whole.as_secs_f64() * 1e3;
    println!("f32          {whole:7.1} ms at batch {batch}, {:.0} MB resident", resident());
    let mut clock = Clock::default();
    let watched = timed(|| model.denoise(&x, &timesteps, &conditioning, &mut clock))?;
    println!(
        "  linear     {:7.1} ms in {} layers (of {:.1} ms with an evaluation around each)",
        clock.linear.as_secs_f64() * 1e3 / CALLS as f64,
        clock.calls / CALLS,
        watched.as_secs_f64() * 1e3
    );
    let half = Array::from_slice(&(0..batch / 2).collect::<Vec<_>>(), &[batch / 2]);
    let latents = x.take_axis(&half, 0)?;
    let decode = timed(|| model.decode(&latents))?;
    println!("decode       {:7.1} ms at batch {}", decode.as_secs_f64() * 1e3, batch / 2);
    Ok(())
}
