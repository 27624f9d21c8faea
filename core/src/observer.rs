//! The observer: how far a layer's input reaches. What it is shown is that of native libraries (`taq_plugin`).

use crate::Result;
use crate::stats::{ChannelExtremes, InputRange, LogHistogram};

pub use taq_plugin::{ObservationPoint, ObservedBatch};

/// All batches of a layer's input: what the engine gathers once for every observer that asks for it.
#[derive(Debug, Clone, Copy)]
pub struct ObservedInput<'a> {
    /// Smallest and largest value of each channel over all batches.
    pub extremes: &'a ChannelExtremes,
    /// Distribution of all values, if the observer [wants](Observer::wants_distribution) it.
    pub distribution: Option<&'a LogHistogram>,
}

/// Finds the range of one layer's input at one timestep.
///
/// The engine makes an observer for every distinct input and step, shows it the batches in the order of the images, and
/// asks for the range. What describes the input whoever observes (extremes, histogram, momentum shift) the engine
/// gathers itself. An observer sees host memory. In a native library it is a [`taq_plugin::Observer`], which is not handed what
/// the engine gathered.
///
/// ```
/// use taq_core::{ObservationPoint, ObservedBatch, ObservedInput, Observer, Result, stats::InputRange};
///
/// /// The extremes over all batches, widened by as much as the first batch's largest value.
/// #[derive(Default)]
/// struct Wide(Option<f32>);
///
/// impl Observer for Wide {
///     fn observe(&mut self, _: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
///         self.0.get_or_insert_with(|| batch.max.iter().fold(0.0, |a: f32, b| a.max(*b)));
///         Ok(())
///     }
///     fn finish(self: Box<Self>, all: &ObservedInput<'_>) -> Result<InputRange> {
///         let mut range = InputRange::from(all.extremes.clone());
///         range.high += self.0.unwrap_or(0.0);
///         Ok(range)
///     }
/// }
/// ```
pub trait Observer: Send {
    /// Whether [`Self::finish`] needs the distribution of all values. It costs a pass over them, and is shared by all
    /// observers that want it.
    fn wants_distribution(&self) -> bool {
        false
    }

    /// Takes in one batch. What depends on all batches together need not be gathered here.
    fn observe(&mut self, _point: &ObservationPoint<'_>, _batch: &ObservedBatch<'_>) -> Result<()> {
        Ok(())
    }

    /// The range of all batches.
    fn finish(self: Box<Self>, all: &ObservedInput<'_>) -> Result<InputRange>;
}
