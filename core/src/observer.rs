//! The observer: how far a layer's input reaches.

use crate::stats::InputRange;
use crate::{LayerSpec, Result};

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

/// One batch of a layer's input: finite values, and what the engine has found in them already.
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

/// Finds the range of one layer's input at one timestep.
///
/// The engine makes an observer for every distinct input and step, shows it the batches in the order of the images, and
/// asks for the range. What describes the input whoever observes (extremes, histogram, momentum shift) the engine
/// gathers itself. An observer sees host memory, so the same trait serves native libraries.
///
/// ```
/// use taq_core::{ObservationPoint, ObservedBatch, Observer, Result, stats::InputRange};
///
/// /// Per-channel extremes over all batches.
/// #[derive(Default)]
/// struct MinMax(InputRange);
///
/// impl Observer for MinMax {
///     fn observe(&mut self, _: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
///         self.0.min.resize(batch.channels, f32::INFINITY);
///         self.0.max.resize(batch.channels, f32::NEG_INFINITY);
///         for (c, (&low, &high)) in batch.min.iter().zip(batch.max).enumerate() {
///             self.0.min[c] = self.0.min[c].min(low);
///             self.0.max[c] = self.0.max[c].max(high);
///             self.0.low = self.0.low.min(low);
///             self.0.high = self.0.high.max(high);
///         }
///         Ok(())
///     }
///     fn finish(self: Box<Self>) -> Result<InputRange> { Ok(self.0) }
/// }
/// ```
pub trait Observer: Send {
    /// Takes in one batch.
    fn observe(&mut self, point: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()>;

    /// The range of all batches.
    fn finish(self: Box<Self>) -> Result<InputRange>;
}
