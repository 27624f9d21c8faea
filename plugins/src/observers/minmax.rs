//! Extremes over all batches: the range that clips nothing, and that one outlier decides.

use schemars::JsonSchema;
use serde::Deserialize;
use taq_core::stats::InputRange;
use taq_core::{ObservedInput, Observer, Result, register};

/// `minmax` has no settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MinMaxSettings {}

/// See the module's head.
#[derive(Debug, Default)]
pub struct MinMax;

impl MinMax {
    /// An observer that has seen nothing.
    pub fn new(_: MinMaxSettings) -> Result<Self> {
        Ok(Self)
    }
}

impl Observer for MinMax {
    fn finish(self: Box<Self>, all: &ObservedInput<'_>) -> Result<InputRange> {
        Ok(InputRange::from(all.extremes.clone()))
    }
}

register!(
    Observer,
    "minmax",
    MinMaxSettings,
    MinMax::new,
    "Per-channel extremes over all batches: nothing is clipped."
);

#[cfg(test)]
mod tests {
    use super::super::testing::{bells, observed};
    use super::*;

    #[test]
    fn extremes_are_those_of_a_plain_loop_whatever_the_batches() {
        let values = bells(3000);
        for tokens in [3000, 100, 7] {
            let batches: Vec<&[f32]> = values.chunks(2 * tokens).collect();
            let range = observed(Box::new(MinMax), &batches);
            for c in 0..2 {
                let column = || values.iter().skip(c).step_by(2).copied();
                assert_eq!(range.min[c], column().fold(f32::INFINITY, f32::min));
                assert_eq!(range.max[c], column().fold(f32::NEG_INFINITY, f32::max));
            }
            assert_eq!((range.low, range.high), (range.min[1], range.max[1]));
        }
    }
}
