//! The inputs of all layers, as a forward pass on a run's samples gives them.

use std::path::Path;

use mlx_rs::Array;
use taq_core::artifacts::{Npz, RunFolder, read_document};
use taq_core::pipeline::{Guidance, RunManifest};
use taq_core::{LayerSpec, LinearCall, Model, Result, Tap};

/// Inputs of layers in the order of the forward pass.
#[derive(Default)]
pub struct Inputs(pub Vec<(LayerSpec, Array)>);

impl Tap for Inputs {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        self.0.push((call.layer.clone(), call.input.clone()));
        call.compute()
    }
}

/// What every layer sees when the model denoises these images of a run at a step, both branches of guidance together.
pub fn inputs(model: &dyn Model, run: &Path, images: &[usize], step: usize) -> Vec<(LayerSpec, Vec<f32>)> {
    let paths = RunFolder::open(run).expect("a run");
    let manifest: RunManifest = read_document(&paths.manifest()).expect("a manifest");
    let guidance = Guidance::new(manifest.cfg_scale).expect("guidance");
    // All at once, as the stages do: sums of other batches differ in their last bits.
    let prompts: Vec<String> = manifest.images.iter().map(|image| image.prompt.clone()).collect();
    let prompts = model.condition(&prompts).and_then(|all| all.rows(images)).expect("prompts");
    let empty = model.condition(&[String::new()]).expect("no prompt");
    let conditioning = guidance.conditioning(&prompts, &empty).expect("conditioning");
    let x = images.iter().map(|&i| Npz::open(&paths.sample(i, step)).and_then(|npz| npz.array("x")));
    let x: Vec<Array> = x.collect::<Result<_>>().expect("samples");
    let x = mlx_rs::ops::stack(&x, 0).expect("latents of one size");
    let mut seen = Inputs::default();
    let timestep = 1000.0 * manifest.sigmas[step];
    guidance.velocity(model, &x, timestep, &conditioning, &mut seen).expect("a pass");
    seen.0.into_iter().map(|(layer, x)| (layer, values(&x))).collect()
}

/// Row-major.
fn values(x: &Array) -> Vec<f32> {
    x.contiguous().expect("a copy").to_vec_exact::<f32>().expect("f32 values")
}
