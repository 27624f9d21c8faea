//! The range of a layer's input, as an observer takes it.

use super::ChannelExtremes;

/// What an observer says of one layer's input at one timestep: how far each channel reaches, and between which values the
/// tensor's grid lies.
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
    /// The extremes themselves: nothing is clipped.
    pub fn of(extremes: ChannelExtremes) -> Self {
        let (low, high) = extremes.overall();
        Self { min: extremes.min, max: extremes.max, low, high }
    }

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
