//! One linear layer with integers against the same in f32 (OpenBLAS, through MLX): milliseconds, the median of many.
//!
//! ```sh
//! cargo bench -p taq-core --bench quantized_linear -- [OUT IN]      default: 6144 1536
//! ```
//!
//! W4A8 is everything from f32 activations to f32 results: quantizing, multiplying, dequantizing, the bias.

#![allow(clippy::print_stdout)] // its output is what it is for

use std::time::Instant;

use taq_core::mlx_rs::{Array, Device, random};
use taq_core::quant::{Clipping, Grid, InputGrids, QuantizedLinear, nearest};
use taq_core::{LayerSpec, LinearCall, Result, Role, Stream};

/// Median time in milliseconds.
fn median(mut call: impl FnMut() -> Result<Array>) -> Result<f64> {
    let (mut times, begin) = (Vec::new(), Instant::now());
    while times.len() < 10 || (begin.elapsed().as_secs_f64() < 2.0 && times.len() < 2000) {
        let start = Instant::now();
        call()?.eval()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn main() -> Result<()> {
    Device::set_default(&Device::cpu());
    let sizes: Vec<i32> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let (outputs, inputs) = if let [o, i] = sizes[..] { (o, i) } else { (6144, 1536) };
    let weight = random::normal::<f32>(&[outputs, inputs], None, Some(0.02), &random::key(1)?)?;
    let bias = random::normal::<f32>(&[outputs], None, None, &random::key(2)?)?;
    let spec = LayerSpec {
        id: "layer".into(),
        block: "block".into(),
        stream: Stream::Image,
        role: Role::Fc1,
        in_features: inputs as usize,
        out_features: outputs as usize,
        post_gelu: false,
    };
    println!("{outputs} × {inputs}, {} threads", rayon::current_num_threads());
    println!("{:>5} {:>6} {:>10} {:>10} {:>7}", "rows", "bits", "f32 ms", "ours ms", "times");
    for rows in [512, 1] {
        let x = random::normal::<f32>(&[1, rows, inputs], None, None, &random::key(3)?)?;
        x.eval()?;
        let call = LinearCall { layer: &spec, input: &x, weight: &weight, bias: Some(&bias) };
        for bits in [4, 2, 3, 6, 8] {
            let rounded = nearest(&weight, &Grid::channel(bits)?, Clipping::Absmax)?;
            let mut plan = InputGrids::new(vec![8], &[4.0 / 127.0])?;
            plan.shift = Some(random::normal::<f32>(&[1, inputs], None, Some(0.1), &random::key(4)?)?);
            let layer = QuantizedLinear::new(&rounded, &plan)?;
            // By turns, so that neither gets the better half of a busy machine.
            let (mut full, mut ours) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..3 {
                full = full.min(median(|| call.compute())?);
                ours = ours.min(median(|| layer.forward(&x, Some(&bias), &[0]))?);
            }
            println!("{rows:5} {bits:6} {full:10.3} {ours:10.3} {:7.2}", full / ours);
        }
    }
    Ok(())
}
