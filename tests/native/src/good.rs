//! Plugins that behave.

use taq_plugin::{
    Batch, BitPolicy, BlockJob, BlockRounder, Context, Error, InputRange, Layer, LayerJob, LayerRounder,
    LayerValues, ObservationPoint, ObservedBatch, Observer, Plugin, Reconstruction, Result, RoundedLayer,
};
use taq_policy::{LayerPlan, PolicyPlan, PolicyRequest};

/// No settings.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// The rounder `plain`: nearest, on the host's grid.
pub struct Plain;

impl Plugin for Plain {
    type Settings = Nothing;
    const NAME: &'static str = "plain";
    const SUMMARY: &'static str = "Rounds to nearest on the host's grid.";
    fn new(_: Nothing) -> Result<Self> {
        Ok(Self)
    }
}

impl LayerRounder for Plain {
    fn round(&self, job: &LayerJob<'_>, cx: &Context<'_>) -> Result<RoundedLayer> {
        cx.check()?;
        taq_plugin::tracing::info!(rows = job.steps.len(), "{} is plain", job.layer.spec.id);
        cx.progress(1, 1);
        Ok(job.layer.nearest())
    }
}

/// Settings of `descent`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DescentSettings {
    /// Steps.
    pub iters: usize,
    /// Whether the step sizes of the inputs are learned too, and the last is kept in place of the best.
    pub inputs: bool,
}

impl Default for DescentSettings {
    fn default() -> Self {
        Self { iters: 20, inputs: false }
    }
}

/// The rounder `descent`: moves weights down the gradient, then rounds; asks everything that a block can be asked.
pub struct Descent(DescentSettings);

impl Plugin for Descent {
    type Settings = DescentSettings;
    const NAME: &'static str = "descent";
    const SUMMARY: &'static str = "Moves weights a little before it rounds them.";
    fn new(settings: DescentSettings) -> Result<Self> {
        if settings.iters == 0 {
            Err(Error::invalid("iters = 0, expected 1 or more"))
        } else {
            Ok(Self(settings))
        }
    }
}

impl BlockRounder for Descent {
    fn round(&self, job: &mut BlockJob<'_>, cx: &Context<'_>) -> Result<Vec<RoundedLayer>> {
        let BlockJob { layers, reconstruction: block, .. } = job;
        let layers: &[Layer<'_>] = layers;
        let rows: Vec<u64> = (0..block.rows().min(4) as u64).collect();
        let mut seen = vec![0; layers.len()];
        block.inputs(&rows, &mut |layer, x| {
            if x.len() % layers[layer].spec.in_features != 0 {
                return Err(format!("{} values for layer {layer}", x.len()).into());
            }
            seen[layer] += x.len();
            Ok(())
        })?;
        if seen.contains(&0) {
            return Err("a layer without inputs".into());
        }
        let mut rounded: Vec<RoundedLayer> = layers.iter().map(|l| l.nearest()).collect();
        let mut moved: Vec<Vec<f32>> = layers.iter().map(|l| l.weight.to_vec()).collect();
        let mut scales: Vec<Vec<f32>> = layers.iter().map(|l| l.input_scale.to_vec()).collect();
        let loss_of = |block: &Reconstruction<'_>, rounded: &[RoundedLayer]| -> Result<f32> {
            let weights: Vec<Vec<f32>> = rounded.iter().zip(layers).map(|(r, l)| r.values(&l.grid)).collect();
            let values: Vec<_> = weights
                .iter()
                .zip(rounded)
                .map(|(weight, r)| LayerValues { weight, input_scale: r.input_scale.as_deref() })
                .collect();
            block.held_out_loss(&values)
        };
        let mut best = (loss_of(block, &rounded)?, rounded.clone());
        for iteration in 0..self.0.iters {
            cx.check()?;
            let weights: Vec<Vec<f32>> = rounded.iter().zip(layers).map(|(r, l)| r.values(&l.grid)).collect();
            let values: Vec<_> = weights
                .iter()
                .zip(&scales)
                .map(|(weight, scale)| LayerValues { weight, input_scale: Some(scale) })
                .collect();
            let row = iteration as u64 % block.rows().max(1) as u64;
            let batch = Batch { rows: &[row], drop: Some((0.5, iteration as u32)) };
            let (_, gradients) = block.loss_and_gradients(&values, batch, self.0.inputs)?;
            for (at, layer) in layers.iter().enumerate() {
                let step = layer.start_scale.first().copied().unwrap_or(1.0) * 0.1;
                for (w, g) in moved[at].iter_mut().zip(gradients[at].weight) {
                    *w -= step
                        * if *g > 0.0 {
                            1.0
                        } else if *g < 0.0 {
                            -1.0
                        } else {
                            0.0
                        };
                }
                for (s, g) in scales[at].iter_mut().zip(gradients[at].input_scale) {
                    *s *= if *g > 0.0 { 0.999 } else { 1.001 };
                }
                let shifted = Layer { weight: &moved[at], ..layer.clone() };
                rounded[at] = shifted.nearest();
                rounded[at].input_scale = self.0.inputs.then(|| scales[at].clone());
            }
            let loss = loss_of(block, &rounded)?;
            if loss < best.0 || self.0.inputs {
                best = (loss, rounded.clone());
            }
            cx.progress(iteration as u64 + 1, self.0.iters as u64);
        }
        Ok(best.1)
    }
}

/// Settings of `centred`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CentredSettings {
    /// Share of the range that is kept.
    pub keep: f32,
}

impl Default for CentredSettings {
    fn default() -> Self {
        Self { keep: 1.0 }
    }
}

/// The observer `centred`: extremes, a share of them.
pub struct Centred {
    keep: f32,
    range: InputRange,
}

impl Plugin for Centred {
    type Settings = CentredSettings;
    const NAME: &'static str = "centred";
    const SUMMARY: &'static str = "A share of the extremes.";
    fn new(CentredSettings { keep }: CentredSettings) -> Result<Self> {
        if !(keep > 0.0 && keep <= 1.0) {
            return Err(Error::invalid(format!("keep = {keep}, expected a number above 0 and at most 1")));
        }
        Ok(Self { keep, range: InputRange::default() })
    }
}

impl Observer for Centred {
    fn observe(&mut self, _: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
        self.range.min.resize(batch.channels, f32::INFINITY);
        self.range.max.resize(batch.channels, f32::NEG_INFINITY);
        self.range.min.iter_mut().zip(batch.min).for_each(|(a, b)| *a = a.min(*b));
        self.range.max.iter_mut().zip(batch.max).for_each(|(a, b)| *a = a.max(*b));
        Ok(())
    }

    fn finish(&mut self) -> Result<InputRange> {
        let keep = |v: &f32| v * self.keep;
        let min: Vec<f32> = self.range.min.iter().map(keep).collect();
        let max: Vec<f32> = self.range.max.iter().map(keep).collect();
        let low = min.iter().copied().fold(f32::INFINITY, f32::min);
        let high = max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Ok(InputRange { min, max, low, high })
    }
}

/// Settings of `eight-late`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EightLateSettings {
    /// Bits of inputs before the last quarter.
    pub early: u8,
}

impl Default for EightLateSettings {
    fn default() -> Self {
        Self { early: 6 }
    }
}

/// The policy `eight-late`: eight bits for inputs in the last quarter of the timesteps.
pub struct EightLate(u8);

impl Plugin for EightLate {
    type Settings = EightLateSettings;
    const NAME: &'static str = "eight-late";
    const SUMMARY: &'static str = "Eight bits late, fewer early.";
    fn new(settings: EightLateSettings) -> Result<Self> {
        match settings.early {
            2..=8 => Ok(Self(settings.early)),
            early => Err(Error::invalid(format!("early = {early}, expected 2 to 8"))),
        }
    }
}

impl BitPolicy for EightLate {
    fn assign(&self, request: &PolicyRequest, _: &Context<'_>) -> Result<PolicyPlan> {
        let steps = request.timesteps.len();
        let plan = |l: &taq_policy::LayerSpec| {
            let mut plan = LayerPlan::uniform(l.id.clone(), 4, 8, steps);
            plan.activation_bits.iter_mut().take(steps - steps / 4).for_each(|bits| *bits = self.0);
            plan
        };
        Ok(PolicyPlan::new(request.layers.iter().map(plan).collect()))
    }
}
