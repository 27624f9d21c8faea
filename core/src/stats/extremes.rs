//! Smallest and largest value of every channel.

use multiversion::multiversion;
use rayon::prelude::*;

/// Values that a task looks at, at least, and tokens.
const SHARE: usize = 1 << 15;
const TOKENS: usize = 64;
/// Channels looked at together: their extremes stay close to the processor.
const TILE: usize = 512;

/// Smallest and largest value of every channel, and whether all values are numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelExtremes {
    /// Smallest value of each channel; +∞ of none.
    pub min: Vec<f32>,
    /// Largest value of each channel; −∞ of none.
    pub max: Vec<f32>,
    /// Whether no value was NaN or infinite.
    pub finite: bool,
}

impl ChannelExtremes {
    /// Of no values yet.
    pub fn new(channels: usize) -> Self {
        Self { min: vec![f32::INFINITY; channels], max: vec![f32::NEG_INFINITY; channels], finite: true }
    }

    /// Of these values, row-major `[tokens, channels]`.
    pub fn of(values: &[f32], channels: usize) -> Self {
        let share = SHARE.div_ceil(channels.max(1)).max(TOKENS) * channels.max(1);
        let parts = values.par_chunks(share).map(|tokens| {
            let mut part = Self::new(channels);
            part.finite = extend(&mut part.min, &mut part.max, tokens);
            part
        });
        parts.reduce(|| Self::new(channels), Self::merge)
    }

    /// Of the values of both.
    pub fn merge(mut self, other: Self) -> Self {
        self.min.iter_mut().zip(other.min).for_each(|(a, b)| *a = a.min(b));
        self.max.iter_mut().zip(other.max).for_each(|(a, b)| *a = a.max(b));
        self.finite &= other.finite;
        self
    }

    /// Smallest and largest value of all channels.
    pub fn overall(&self) -> (f32, f32) {
        let low = self.min.iter().copied().fold(f32::INFINITY, f32::min);
        (low, self.max.iter().copied().fold(f32::NEG_INFINITY, f32::max))
    }
}

/// Returns whether all values are finite; what is not may or may not become an extreme.
#[multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn extend(min: &mut [f32], max: &mut [f32], tokens: &[f32]) -> bool {
    let channels = min.len().max(1);
    let mut wild = 0u32;
    for (tile, (min, max)) in min.chunks_mut(TILE).zip(max.chunks_mut(TILE)).enumerate() {
        for token in tokens.chunks_exact(channels) {
            let token = &token[tile * TILE..][..min.len()];
            for ((low, high), &v) in min.iter_mut().zip(max.iter_mut()).zip(token) {
                *low = if v < *low { v } else { *low };
                *high = if v > *high { v } else { *high };
                wild |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
            }
        }
    }
    wild == 0
}

/// Whether no value is NaN or infinite.
#[multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0, |wild, v| wild | u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_a_plain_loop() {
        for (channels, tokens) in [(7, 1000), (1, 70_000), (1536, 50), (3, 1)] {
            let x: Vec<f32> =
                (0..channels * tokens).map(|i| ((i * 7919) % 1009) as f32 / 8.0 - 50.0).collect();
            let found = ChannelExtremes::of(&x, channels);
            for c in 0..channels {
                let column = || x.iter().skip(c).step_by(channels).copied();
                assert_eq!(found.min[c], column().fold(f32::INFINITY, f32::min));
                assert_eq!(found.max[c], column().fold(f32::NEG_INFINITY, f32::max));
            }
            let low = x.iter().copied().fold(f32::INFINITY, f32::min);
            assert_eq!(found.overall(), (low, x.iter().copied().fold(f32::NEG_INFINITY, f32::max)));
            assert!(found.finite);
        }
    }

    #[test]
    fn whatever_is_no_number_is_seen_wherever_it_is() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for at in [0, 1, 4999, 9_999] {
                let mut x = vec![0.5; 10_000];
                x[at] = wrong;
                assert!(!ChannelExtremes::of(&x, 4).finite && !all_finite(&x), "{wrong} at {at}");
            }
        }
        let wide = [f32::MAX, f32::MIN, 1e-45, -0.0];
        assert!(ChannelExtremes::of(&wide, 2).finite && all_finite(&wide));
    }
}
