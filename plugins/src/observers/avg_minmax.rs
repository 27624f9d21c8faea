//! Running averages of per-batch, per-channel extremes (QDrop's `AvgMinMaxObserver`, wimh966/QDrop@0b0668a9).

use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::stats::InputRange;
use taq_core::{ObservationPoint, ObservedBatch, Observer, Result, register};

/// `avg-minmax` has no settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AvgMinMaxSettings {}

/// Channels: the extremes of each batch, averaged. The tensor: the extremes of all.
#[derive(Debug, Default)]
pub struct AvgMinMax {
    range: InputRange,
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
        let range = &mut self.range;
        average_in(&mut range.min, batch.min, self.batches);
        average_in(&mut range.max, batch.max, self.batches);
        range.low = batch
            .min
            .iter()
            .copied()
            .fold(if self.batches == 1 { f32::INFINITY } else { range.low }, f32::min);
        range.high = batch
            .max
            .iter()
            .copied()
            .fold(if self.batches == 1 { f32::NEG_INFINITY } else { range.high }, f32::max);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<InputRange> {
        Ok(self.range)
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
