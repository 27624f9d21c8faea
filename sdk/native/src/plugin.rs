//! The traits of native plugins: those of taq itself, on slices in host memory.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use taq_policy::{LayerSpec, PolicyPlan, PolicyRequest};

use crate::{BlockJob, Context, Grid, LayerJob, Result};

/// What every plugin has: a name, a sentence, settings.
pub trait Plugin: Sized + Send + 'static {
    /// Settings, with a default for each; `#[serde(default, deny_unknown_fields)]` lets a typo be told.
    type Settings: DeserializeOwned + JsonSchema;
    /// Name within its kind: 1 to 64 letters, digits and `-_.`.
    const NAME: &'static str;
    /// One sentence for lists.
    const SUMMARY: &'static str;

    /// Makes one.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if a setting is out of range.
    fn new(settings: Self::Settings) -> Result<Self>;
}

/// The integers of one layer and what they mean: `weight ≈ (weight_int − zero_point) · scale`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoundedLayer {
    /// Row-major `[out_features, in_features]`, each within the grid's range.
    pub weight_int: Vec<i8>,
    /// One step size for each group, greater than 0.
    pub scale: Vec<f32>,
    /// One zero point for each group; all 0 on a symmetric grid.
    pub zero_point: Vec<f32>,
    /// Step sizes of the input, `[steps]`, in place of the plan's; `None`: the plan holds.
    pub input_scale: Option<Vec<f32>>,
}

impl RoundedLayer {
    /// The weight that the integers stand for, row-major.
    pub fn values(&self, grid: &Grid) -> Vec<f32> {
        let group = |i: usize| i / grid.group_len.max(1);
        let value = |(i, &q): (usize, &i8)| (f32::from(q) - self.zero_point[group(i)]) * self.scale[group(i)];
        self.weight_int.iter().enumerate().map(value).collect()
    }
}

/// Rounds layers one at a time.
///
/// ```
/// use taq_plugin::{Context, LayerJob, LayerRounder, Plugin, Result, RoundedLayer};
///
/// /// Rounds every weight to the nearest point of the host's grid.
/// struct Nearest;
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct Settings {}
///
/// impl Plugin for Nearest {
///     type Settings = Settings;
///     const NAME: &'static str = "my-nearest";
///     const SUMMARY: &'static str = "Rounds to nearest.";
///     fn new(_: Settings) -> Result<Self> { Ok(Self) }
/// }
///
/// impl LayerRounder for Nearest {
///     fn round(&self, job: &LayerJob<'_>, _: &Context<'_>) -> Result<RoundedLayer> {
///         Ok(job.layer.nearest())
///     }
/// }
///
/// taq_plugin::export_plugin! { layer_rounders: [Nearest] }
/// ```
pub trait LayerRounder: Plugin {
    /// Rounds one layer.
    ///
    /// # Errors
    /// What the user is told.
    fn round(&self, job: &LayerJob<'_>, cx: &Context<'_>) -> Result<RoundedLayer>;
}

/// Rounds the layers of a block together, by what the block makes of them.
pub trait BlockRounder: Plugin {
    /// Rounds a block: one entry for each of its layers, in their order.
    ///
    /// # Errors
    /// What the user is told.
    fn round(&self, job: &mut BlockJob<'_>, cx: &Context<'_>) -> Result<Vec<RoundedLayer>>;
}

/// Where a tensor was seen.
#[derive(Debug, Clone, Copy)]
pub struct ObservationPoint<'a> {
    /// The layer whose input it is; of several that read the same tensor (queries, keys and values of one attention), the
    /// first.
    pub layer: &'a LayerSpec,
    /// Step of the schedule.
    pub step: usize,
    /// Noise level of the step.
    pub sigma: f32,
}

/// One batch of a layer's input: finite values, and their extremes.
#[derive(Debug, Clone, Copy)]
pub struct ObservedBatch<'a> {
    /// Row-major, `values.len() / channels` tokens of `channels` values.
    pub values: &'a [f32],
    /// Values of a token.
    pub channels: usize,
    /// Smallest value of each channel in this batch.
    pub min: &'a [f32],
    /// Largest value of each channel in this batch.
    pub max: &'a [f32],
}

/// What an observer says of an input: how far each channel reaches, and between which values the tensor's grid lies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputRange {
    /// Lower end of each channel.
    pub min: Vec<f32>,
    /// Upper end of each channel.
    pub max: Vec<f32>,
    /// Lower end of the tensor: what lies below is clipped.
    pub low: f32,
    /// Upper end of the tensor.
    pub high: f32,
}

impl InputRange {
    /// The same, with nothing beyond these ends.
    pub fn within(mut self, low: f32, high: f32) -> Self {
        let clip = |v: &mut f32| *v = v.max(low).min(high);
        self.min.iter_mut().chain(&mut self.max).chain([&mut self.low, &mut self.high]).for_each(clip);
        self
    }

    /// Largest magnitude of the tensor's range.
    pub fn absmax(&self) -> f32 {
        self.low.abs().max(self.high.abs())
    }

    /// Largest magnitude of each channel.
    pub fn channel_absmax(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(low, high)| low.abs().max(high.abs())).collect()
    }
}

/// Finds the range of one layer's input at one timestep. The host makes an observer for each of them, and shows it the
/// batches in the order of the images.
pub trait Observer: Plugin {
    /// Takes in one batch.
    ///
    /// # Errors
    /// What the user is told.
    fn observe(&mut self, point: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()>;

    /// The range of all batches; asked once.
    ///
    /// # Errors
    /// What the user is told.
    fn finish(&mut self) -> Result<InputRange>;
}

/// A pure function from what was measured to a plan, the same as in WASM.
pub trait BitPolicy: Plugin {
    /// Whether the request must hold the statistics of every channel.
    const PER_CHANNEL: bool = false;

    /// The plan: one entry for each layer of the request, in its order.
    ///
    /// # Errors
    /// What the user is told.
    fn assign(&self, request: &PolicyRequest, cx: &Context<'_>) -> Result<PolicyPlan>;
}
