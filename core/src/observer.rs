//! The observer: statistics of what a layer sees.

use crate::stats::LayerStats;
use crate::{LayerSpec, Result};

/// Where a tensor was seen.
#[derive(Debug, Clone, Copy)]
pub struct ObservationPoint<'a> {
    /// The layer whose input it is.
    pub layer: &'a LayerSpec,
    /// Step of the schedule.
    pub step: usize,
    /// Noise level of the step.
    pub sigma: f32,
}

/// Accumulates statistics of one layer's input at one timestep.
///
/// The engine makes one observer for each (layer, step), shows it the batches in the order of the images, and
/// asks for the result. An observer sees host memory, so the same trait serves native libraries.
///
/// ```
/// use taq_core::{ObservationPoint, Observer, Result, stats::LayerStats};
///
/// /// Per-channel extremes over all batches.
/// #[derive(Default)]
/// struct MinMax(LayerStats);
///
/// impl Observer for MinMax {
///     fn observe(&mut self, _: &ObservationPoint<'_>, x: &[f32], channels: usize) -> Result<()> {
///         self.0.batches += 1;
///         self.0.avg_min.resize(channels, f32::INFINITY);
///         self.0.avg_max.resize(channels, f32::NEG_INFINITY);
///         for (i, &v) in x.iter().enumerate() {
///             self.0.avg_min[i % channels] = self.0.avg_min[i % channels].min(v);
///             self.0.avg_max[i % channels] = self.0.avg_max[i % channels].max(v);
///         }
///         Ok(())
///     }
///     fn finish(self: Box<Self>) -> Result<LayerStats> { Ok(self.0) }
/// }
/// ```
pub trait Observer: Send {
    /// Takes in one batch: `x` is row-major, `x.len() / channels` tokens of `channels` values.
    fn observe(&mut self, point: &ObservationPoint<'_>, x: &[f32], channels: usize) -> Result<()>;

    /// The statistics.
    fn finish(self: Box<Self>) -> Result<LayerStats>;
}
