//! The range of a layer's input, as an observer takes it.

use super::ChannelExtremes;

pub use taq_plugin::InputRange;

/// The extremes themselves: nothing is clipped.
impl From<ChannelExtremes> for InputRange {
    fn from(extremes: ChannelExtremes) -> Self {
        let (low, high) = extremes.overall();
        Self { min: extremes.min, max: extremes.max, low, high }
    }
}
