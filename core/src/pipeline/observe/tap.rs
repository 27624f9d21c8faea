//! Shows every layer's input to the observers.

use std::collections::BTreeMap;

use mlx_rs::Array;
use rayon::prelude::*;

use super::input::{Description, Input};
use crate::stats::LayerStats;
use crate::{Error, LayerId, LayerSpec, LinearCall, ObservationPoint, Observer, Result, Tap};

/// Makes the observers of one input, with their names; the ranges of the first are what plans are made from.
pub type MakeObservers<'a> = dyn Fn() -> Result<Vec<(String, Box<dyn Observer>)>> + 'a;

/// Watches the inputs of layers in forward passes at one timestep.
///
/// Inputs of a block are evaluated together, then observed in parallel. Layers that read the same tensor share one
/// observation.
pub struct ObserverTap<'a> {
    make: &'a MakeObservers<'a>,
    describe: Description,
    /// Whether a layer is watched.
    wanted: &'a (dyn Fn(&LayerId) -> bool + 'a),
    step: usize,
    sigma: f32,
    /// By the first of the layers that share the input.
    inputs: BTreeMap<LayerId, (Vec<LayerSpec>, Input)>,
    /// Inputs of the block that the pass is in.
    pending: Vec<(LayerSpec, Array)>,
}

impl<'a> ObserverTap<'a> {
    /// A tap for one step of the schedule.
    pub fn new(
        make: &'a MakeObservers<'a>,
        describe: Description,
        wanted: &'a (dyn Fn(&LayerId) -> bool + 'a),
        step: usize,
        sigma: f32,
    ) -> Self {
        Self { make, describe, wanted, step, sigma, inputs: BTreeMap::new(), pending: Vec::new() }
    }

    /// Observes what the pass has left; to be called at its end.
    pub fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let inputs = host_inputs(pending.iter().map(|(_, x)| x))?;
        let mut shared: Vec<(Vec<LayerSpec>, &[f32])> = Vec::new();
        for ((layer, _), input) in pending.into_iter().zip(&inputs) {
            let values = values_of(&layer.id, input)?;
            // The same memory, or at least the same values: `==` of slices would read them all.
            match shared.iter_mut().find(|(_, known)| std::ptr::eq(*known, values)) {
                Some((layers, _)) => layers.push(layer),
                None => shared.push((vec![layer], values)),
            }
        }
        let mut work = Vec::with_capacity(shared.len());
        for (layers, values) in shared {
            let input = match self.inputs.remove(&layers[0].id) {
                Some((before, input)) if same(&before, &layers) => input,
                Some(_) => {
                    let what = format!(
                        "a model in which {} shares its input with others only at times",
                        layers[0].id
                    );
                    return Err(Error::Unsupported { what });
                }
                None => Input::new((self.make)()?, self.describe),
            };
            work.push((layers, values, input));
        }
        let (step, sigma) = (self.step, self.sigma);
        let seen = work
            .into_par_iter()
            .map(|(layers, values, mut input)| {
                let point = ObservationPoint { layer: &layers[0], step, sigma };
                input.observe(&point, values, layers[0].in_features)?;
                Ok((layers[0].id.clone(), (layers, input)))
            })
            .collect::<Result<Vec<_>>>()?;
        self.inputs.extend(seen);
        Ok(())
    }

    /// The statistics of every layer that was seen.
    pub fn finish(self) -> Result<BTreeMap<LayerId, LayerStats>> {
        let mut all = BTreeMap::new();
        let inputs: Vec<_> = self.inputs.into_values().collect();
        let found = inputs.into_par_iter().map(|(layers, input)| {
            let stats = input.finish(layers[0].in_features)?;
            Ok((layers, stats))
        });
        for (layers, stats) in found.collect::<Result<Vec<_>>>()? {
            for layer in &layers[1..] {
                all.insert(layer.id.clone(), stats.clone());
            }
            all.insert(layers[0].id.clone(), stats);
        }
        Ok(all)
    }
}

/// Evaluates inputs together, row-major. What is so already is not copied.
pub(in crate::pipeline) fn host_inputs<'a>(inputs: impl Iterator<Item = &'a Array>) -> Result<Vec<Array>> {
    let inputs: Vec<Array> = inputs.map(|x| Ok(x.contiguous()?)).collect::<Result<_>>()?;
    mlx_rs::transforms::eval(&inputs)?;
    Ok(inputs)
}

/// The values of such an input.
pub(in crate::pipeline) fn values_of<'a>(layer: &LayerId, input: &'a Array) -> Result<&'a [f32]> {
    input.try_as_slice::<f32>().map_err(|e| Error::Unsupported {
        what: format!("observing needs f32 activations; the input of {layer}: {e}"),
    })
}

fn same(a: &[LayerSpec], b: &[LayerSpec]) -> bool {
    a.iter().map(|l| &l.id).eq(b.iter().map(|l| &l.id))
}

impl Tap for ObserverTap<'_> {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if self.pending.last().is_some_and(|(last, _)| last.block != call.layer.block) {
            self.flush()?;
        }
        if (self.wanted)(&call.layer.id) {
            self.pending.push((call.layer.clone(), call.input.clone()));
        }
        call.compute()
    }
}
