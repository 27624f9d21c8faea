//! What observing costs: forward passes without observers, and the same passes with them.
//!
//! ```sh
//! cargo bench --workspace --bench observing -- [MODEL IMAGES PASSES]      default: the emoji model, 8 images, 10 passes
//! python3 models/random_sd3.py /tmp/sd3 --layers 1 && cargo bench --workspace --bench observing -- /tmp/sd3 1 3
//! ```
//!
//! Both kinds of passes take turns, and the median of each is compared: on a machine that does other things too, single
//! figures mean little.

#![allow(clippy::print_stdout)] // its output is what it is for

use std::time::Instant;

use serde_json::json;
use taq_core::mlx_rs::{Device, random, transforms};
use taq_core::pipeline::{Description, Guidance, ObserverTap};
use taq_core::registry::Registry;
use taq_core::stats::{ChannelExtremes, ChannelProfile, Histogram, LogHistogram};
use taq_core::{Conditioning, Identity, LayerId, Model, Observer, Result, Tap, mlx_rs};
use taq_plugins as _;

struct Pass {
    model: Box<dyn Model>,
    x: mlx_rs::Array,
    conditioning: Conditioning,
    guidance: Guidance,
}

impl Pass {
    fn new(registry: &Registry, source: Option<&str>, images: usize) -> Result<Self> {
        let settings = source.map_or_else(|| json!({}), |source| json!({ "source": source }));
        let model = registry.model("sd3", &settings)?;
        let (defaults, spec) = (model.defaults(), model.spec());
        let (h, w) = (defaults.image_size.0 / spec.vae_factor, defaults.image_size.1 / spec.vae_factor);
        let shape = [images as i32, h as i32, w as i32, spec.latent_channels as i32];
        let x = random::normal::<f32>(&shape, None, None, &random::key(1)?)?;
        let guidance = Guidance::new(defaults.cfg_weight)?;
        let prompts = model.condition(&vec!["a lighthouse in a storm".to_owned(); images])?;
        let conditioning = guidance.conditioning(&prompts, &model.condition(&[String::new()])?)?;
        transforms::eval([&x, &conditioning.tokens, &conditioning.pooled])?;
        Ok(Self { model, x, conditioning, guidance })
    }

    fn run(&self, tap: &mut dyn Tap) -> Result<()> {
        let velocity = self.guidance.velocity(&*self.model, &self.x, 700.0, &self.conditioning, tap)?;
        Ok(transforms::eval([&velocity])?)
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Result<()> {
    Device::set_default(&Device::cpu());
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let source = arguments.first().map(String::as_str).filter(|s| !s.is_empty());
    let number =
        |at: usize, default: usize| arguments.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (images, passes) = (number(1, 8), number(2, 10));
    let registry = Registry::linked()?;
    let pass = Pass::new(&registry, source, images)?;
    pass.run(&mut Identity)?;
    println!("{} images a pass, {} latents, {passes} passes", images, pass.x.shape()[1]);

    let choices: [&[&str]; 4] =
        [&["avg-minmax"], &["percentile"], &["mse"], &["avg-minmax", "minmax", "percentile", "mse"]];
    for names in choices {
        let make = || -> Result<Vec<(String, Box<dyn Observer>)>> {
            names.iter().map(|n| Ok(((*n).to_owned(), registry.observer(n, &json!({}))?))).collect()
        };
        let all = |_: &LayerId| true;
        let describe = Description { hist_bins: 256, shift_momentum: 0.95 };
        let mut tap = ObserverTap::new(&make, describe, &all, 0, 0.7);
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..passes {
            let start = Instant::now();
            pass.run(&mut Identity)?;
            without.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            pass.run(&mut tap)?;
            tap.flush()?;
            with.push(start.elapsed().as_secs_f64());
        }
        let (without, with) = (median(without), median(with));
        println!(
            "{:<40}{:>9.1} ms without{:>9.1} ms with{:>8.3} times",
            names.join(" + "),
            1e3 * without,
            1e3 * with,
            with / without
        );
        let start = Instant::now();
        let layers = tap.finish()?.len();
        println!("{:<40}{:>9.1} ms to finish {layers} layers", "", 1e3 * start.elapsed().as_secs_f64());
    }

    // The loops by themselves, on values as they come out of GELU.
    let (tokens, channels, times) = (512, 768, 64);
    let values: Vec<f32> =
        (0..tokens * channels).map(|i| ((i * 7919 % 10_007) as f32 / 2000.0 - 0.17).max(-0.17)).collect();
    let each = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..times).for_each(|_| work());
        let seconds = start.elapsed().as_secs_f64() / (times * values.len()) as f64;
        println!("{what:<40}{:>9.2} ns a value", 1e9 * seconds);
    };
    each("channels' extremes", &mut || drop(ChannelExtremes::of(&values, channels)));
    let mut histogram = Histogram::between(-0.17, 4.8, 256);
    each("histogram", &mut || histogram.add(&values));
    let mut histogram = LogHistogram::default();
    each("logarithmic histogram, one thread", &mut || histogram.add(&values));
    let mut profile = ChannelProfile::new(channels);
    each("profile", &mut || profile.add(&values));
    Ok(())
}
