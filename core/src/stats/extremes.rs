//! Smallest and largest value of every channel.

use multiversion::multiversion;
use rayon::prelude::*;

/// Values that a task looks at, at least, and tokens.
const SHARE: usize = 1 << 15;
const TOKENS: usize = 64;
/// Channels looked at together: their extremes stay in the processor's registers.
const TILE: usize = 64;

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
    let whole = channels / TILE * TILE;
    let mut largest = 0;
    for at in (0..whole).step_by(TILE) {
        // Arrays of a known length: of zipped slices the compiler makes no vector code here.
        let (mut low, mut high, mut bits) = ([0.0; TILE], [0.0; TILE], [0; TILE]);
        low.copy_from_slice(&min[at..at + TILE]);
        high.copy_from_slice(&max[at..at + TILE]);
        for token in tokens.chunks_exact(channels) {
            let Some(token) = token[at..].first_chunk::<TILE>() else { continue };
            for i in 0..TILE {
                let v = token[i];
                low[i] = if v < low[i] { v } else { low[i] };
                high[i] = if v > high[i] { v } else { high[i] };
                bits[i] = bits[i].max(magnitude(v));
            }
        }
        min[at..at + TILE].copy_from_slice(&low);
        max[at..at + TILE].copy_from_slice(&high);
        largest = bits.into_iter().fold(largest, i32::max);
    }
    for token in tokens.chunks_exact(channels) {
        for (c, &v) in token.iter().enumerate().skip(whole) {
            min[c] = if v < min[c] { v } else { min[c] };
            max[c] = if v > max[c] { v } else { max[c] };
            largest = largest.max(magnitude(v));
        }
    }
    largest < INFINITE
}

/// The bits of a magnitude, in the order of magnitudes; those of NaN lie above infinity's.
#[inline(always)]
fn magnitude(v: f32) -> i32 {
    (v.to_bits() & 0x7fff_ffff) as i32
}

const INFINITE: i32 = 0x7f80_0000;

/// Whether no value is NaN or infinite.
#[multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0, |largest, &v| magnitude(v).max(largest)) < INFINITE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_a_plain_loop() {
        for (channels, tokens) in [(7, 1000), (1, 70_000), (1536, 50), (200, 300), (64, 1), (3, 1)] {
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
