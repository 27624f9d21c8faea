//! Running averages of per-batch, per-channel extremes (QDrop's `AvgMinMaxObserver`, wimh966/QDrop@0b0668a9).

use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::stats::InputRange;
use taq_core::{ObservationPoint, ObservedBatch, ObservedInput, Observer, Result, register};

/// `avg-minmax` has no settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AvgMinMaxSettings {}

/// Channels: the extremes of each batch, averaged. The tensor: the extremes of all.
#[derive(Debug, Default)]
pub struct AvgMinMax {
    min: Vec<f32>,
    max: Vec<f32>,
    batches: u64,
}

impl AvgMinMax {
    /// An observer that has seen nothing.
    pub fn new(_: AvgMinMaxSettings) -> Result<Self> {
        Ok(Self::default())
    }
}

impl Observer for AvgMinMax {
    fn observe(&mut self, _: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
        self.batches += 1;
        average_in(&mut self.min, batch.min, self.batches);
        average_in(&mut self.max, batch.max, self.batches);
        Ok(())
    }

    fn finish(self: Box<Self>, all: &ObservedInput<'_>) -> Result<InputRange> {
        let (low, high) = all.extremes.overall();
        Ok(InputRange { min: self.min, max: self.max, low, high })
    }
}

/// Running mean after `n` batches: m ← m + (v − m) / n.
fn average_in(mean: &mut Vec<f32>, values: &[f32], n: u64) {
    if n == 1 {
        mean.extend_from_slice(values);
    } else {
        mean.iter_mut().zip(values).for_each(|(m, v)| *m += (v - *m) / n as f32);
    }
}

register!(
    Observer,
    "avg-minmax",
    AvgMinMaxSettings,
    AvgMinMax::new,
    "Per-channel extremes averaged over batches; nothing of the tensor is clipped."
);

#[cfg(test)]
mod tests {
    use super::super::testing::observed;
    use super::*;

    #[test]
    fn averages_extremes_over_batches() {
        let observer = Box::new(AvgMinMax::default());
        let range = observed(observer, &[&[1.0, -1.0, 3.0, 5.0], &[2.0, 0.0, -1.0, 1.0]]);
        assert_eq!((range.min, range.max), (vec![0.0, -0.5], vec![2.5, 3.0]));
        assert_eq!((range.low, range.high), (-1.0, 5.0));
    }
}
