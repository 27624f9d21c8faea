//! The SDK's small problems as jobs of the engine, and rounders that are linked in under the SDK's conformance suite.

use std::sync::{Arc, Mutex};

use mlx_rs::Array;
use serde_json::Value;
use taq_core::quant::{Granularity, Grid, InputGrids, QuantizedLayer, to_vec};
use taq_core::registry::Registry;
use taq_core::{
    Batch, BlockJob, BlockSpec, Cancel, Context, Error, LayerGradients, LayerJob, Progress, Reconstruction,
    Result, RoundedBlock, Rounder,
};
use taq_plugin::LayerValues;
use taq_plugin::conformance::{Host, Problem, Rounds};
use taq_plugin::host::LayerData;

/// A problem as the engine would have it.
pub struct Planted<'a> {
    problem: &'a Problem,
    host: &'a Host,
    block: BlockSpec,
    jobs: Vec<LayerJob>,
}

fn job(layer: &LayerData) -> LayerJob {
    let shape = [layer.spec.out_features, layer.spec.in_features];
    let granularity = match layer.grid.group_len {
        length if length == shape[1] => Granularity::Channel,
        length if length == shape[0] * shape[1] => Granularity::Tensor,
        length => Granularity::Group(length),
    };
    LayerJob {
        spec: layer.spec.clone(),
        weight: Array::from_slice(&layer.weight, &shape.map(|n| n as i32)),
        grid: Grid::new(layer.grid.bits, granularity, layer.grid.symmetric).expect("a grid"),
        input: InputGrids::new(layer.input_bits.clone(), &layer.input_scale).expect("grids of the input"),
    }
}

impl<'a> Planted<'a> {
    /// The problem, with a host that may fail.
    pub fn new(problem: &'a Problem, host: &'a Host) -> Self {
        let layers = problem.layers.iter().map(|l| l.spec.clone()).collect();
        let block = BlockSpec { id: "block".into(), layers };
        Self { problem, host, block, jobs: problem.layers.iter().map(job).collect() }
    }

    /// What a rounder makes of it, validated.
    pub fn round(&self, rounder: &dyn Rounder, cx: &Context) -> Result<RoundedBlock> {
        let job = BlockJob { block: &self.block, layers: &self.jobs, reconstruction: self };
        let rounded = rounder.round(&job, cx)?;
        assert_eq!(rounded.layers.len(), self.jobs.len());
        for (layer, job) in rounded.layers.iter().zip(&self.jobs) {
            layer.validate(&job.spec, job.input.steps())?;
        }
        Ok(rounded)
    }

    fn call(&self) -> Result<()> {
        self.host.call().map_err(|e| Error::Unsupported { what: e.to_string() })
    }
}

/// A layer's weight and the step sizes of its input.
fn numbers(layers: &[QuantizedLayer]) -> Result<Vec<[Vec<f32>; 2]>> {
    layers.iter().map(|l| Ok([to_vec(&l.weight)?, to_vec(&l.input.scale)?])).collect()
}

fn values(numbers: &[[Vec<f32>; 2]]) -> Vec<LayerValues<'_>> {
    numbers.iter().map(|[weight, scale]| LayerValues { weight, input_scale: Some(scale) }).collect()
}

impl Reconstruction for Planted<'_> {
    fn rows(&self) -> usize {
        self.problem.rows
    }

    fn step(&self, row: usize) -> usize {
        self.problem.step(row)
    }

    fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
        self.call()?;
        let tokens = self.problem.tokens(rows);
        let width = self.problem.width();
        let shape = [rows.len() as i32, (tokens.len() / width / rows.len()) as i32, width as i32];
        let x = Array::from_slice(&tokens, &shape);
        (0..self.jobs.len()).try_for_each(|layer| visit(layer, &x))
    }

    fn loss_and_grads(
        &self,
        layers: &[QuantizedLayer],
        batch: Batch<'_>,
    ) -> Result<(Array, Vec<LayerGradients>)> {
        self.call()?;
        let numbers = numbers(layers)?;
        let mut gradients = self.problem.gradients();
        let loss = self.problem.loss(&values(&numbers), batch.rows, Some(&mut gradients));
        let gradients = gradients.iter().zip(layers).map(|(g, layer)| LayerGradients {
            weight: Array::from_slice(&g.weight, layer.weight.shape()),
            scale: Array::from_slice(&g.input_scale, &[g.input_scale.len() as i32]),
            bias: layer.bias.as_ref().map(|b| b.multiply(Array::from_f32(0.0))).transpose().expect("zeros"),
        });
        Ok((Array::from_f32(loss), gradients.collect()))
    }

    fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
        self.call()?;
        Ok(self.problem.held_out(&values(&numbers(layers)?)))
    }
}

/// Notes what is reported.
#[derive(Default)]
struct Noted(Mutex<u64>);

impl Progress for Noted {
    fn begin(&self, _: &str, _: u64) {}

    fn advance(&self, units: u64, _: &str) {
        *self.0.lock().expect("no panic") += units;
    }

    fn end(&self) {}
}

/// A rounder by name, with settings.
pub struct Linked {
    name: &'static str,
    settings: Value,
}

impl Linked {
    /// The rounder of this name among those linked in.
    pub fn new(name: &'static str, settings: Value) -> Self {
        Self { name, settings }
    }

    fn make(&self, settings: &Value) -> taq_plugin::Result<Box<dyn Rounder>> {
        let registry = Registry::linked().map_err(told)?;
        registry.rounder(self.name, settings).map_err(told)
    }
}

/// An error of the engine as the suites know errors.
pub(crate) fn told(error: Error) -> taq_plugin::Error {
    match error {
        Error::Settings { .. } => taq_plugin::Error::Invalid(error.to_string()),
        Error::Cancelled => taq_plugin::Error::Cancelled,
        other => taq_plugin::Error::Failed(other.to_string()),
    }
}

impl Rounds for Linked {
    fn create(&self, settings: Option<&str>) -> taq_plugin::Result<()> {
        let settings = match settings {
            Some(text) => {
                serde_json::from_str(text).map_err(|e| taq_plugin::Error::Invalid(e.to_string()))?
            }
            None => self.settings.clone(),
        };
        self.make(&settings).map(drop)
    }

    fn round(
        &self,
        problem: &Problem,
        seed: u64,
        host: &Host,
    ) -> taq_plugin::Result<Vec<taq_plugin::RoundedLayer>> {
        let rounder = self.make(&self.settings)?;
        let noted = Arc::new(Noted::default());
        let cx = Context { seed, progress: noted.clone(), cancel: Cancel::default() };
        if host.is_cancelled() {
            cx.cancel.cancel();
        }
        let rounded = Planted::new(problem, host).round(&*rounder, &cx).map_err(told)?;
        host.report(*noted.0.lock().expect("no panic"), rounder.iterations());
        let layer = |l: taq_core::RoundedLayer| taq_plugin::RoundedLayer {
            weight_int: l.weight_int,
            scale: l.scale,
            zero_point: l.zero_point,
            input_scale: l.learned.map(|learned| learned.scale),
        };
        Ok(rounded.layers.into_iter().map(layer).collect())
    }

    fn round_elsewhere(
        &self,
        _: &Problem,
        _: u64,
    ) -> Option<taq_plugin::Result<Vec<taq_plugin::RoundedLayer>>> {
        // MLX is driven from one thread.
        None
    }

    fn by_block(&self) -> bool {
        true
    }
}
