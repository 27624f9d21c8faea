//! What one layer's input is like, channel by channel, at one timestep.

use multiversion::multiversion;
use rayon::prelude::*;

use super::ChannelExtremes;
use super::tally::{Tally, floor, index};

/// Values that a task looks at, at least, and tokens.
const SHARE: usize = 1 << 16;
const TOKENS: usize = 64;
/// Channels looked at together: their sums stay close to the processor.
const TILE: usize = 32;

/// Bins of [`ChannelProfile::histogram`].
pub const PROFILE_BINS: usize = 512;
/// The bins reach from −8 to 8.
pub const PROFILE_REACH: f32 = 8.0;
/// Bins in 1: a power of two, so that no rounding puts a value into a bin beside its own.
const PER_UNIT: f32 = PROFILE_BINS as f32 / (2.0 * PROFILE_REACH);

/// Moments and extremes of every channel, and one histogram of all values.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelProfile {
    /// Tokens seen, which is how many values each channel has.
    pub tokens: u64,
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Σ(x − mean)² of each channel.
    squares: Vec<f64>,
    /// Smallest value of each channel.
    pub min: Vec<f32>,
    /// Largest value of each channel.
    pub max: Vec<f32>,
    /// Counts of the values of all channels in [`PROFILE_BINS`] equal bins between ∓[`PROFILE_REACH`], each with its lower
    /// end; values beyond count in the outermost bins.
    pub histogram: Vec<u64>,
}

impl ChannelProfile {
    /// Of no values yet.
    pub fn new(channels: usize) -> Self {
        Self {
            tokens: 0,
            mean: vec![0.0; channels],
            squares: vec![0.0; channels],
            min: vec![f32::INFINITY; channels],
            max: vec![f32::NEG_INFINITY; channels],
            histogram: vec![0; PROFILE_BINS],
        }
    }

    /// Takes in finite values, row-major `[tokens, channels]`.
    ///
    /// Parts of the values are looked at in parallel and merged in their order (Chan, Golub and LeVeque, 1979): nothing
    /// cancels, and the number of threads does not matter.
    pub fn add(&mut self, values: &[f32]) {
        let channels = self.mean.len();
        if channels == 0 {
            return;
        }
        let share = SHARE.div_ceil(channels).max(TOKENS) * channels;
        let parts: Vec<Part> = values.par_chunks(share).map(|values| Part::of(values, channels)).collect();
        parts.iter().for_each(|part| self.merge(part));
    }

    fn merge(&mut self, part: &Part) {
        if part.tokens == 0 {
            return;
        }
        let (old, new) = (self.tokens as f64, part.tokens as f64);
        for c in 0..self.mean.len() {
            // Of the differences from the pivot.
            let off = part.first[c] / new;
            let apart = part.pivot[c] + off - self.mean[c];
            self.mean[c] += apart * new / (old + new);
            let squares = (part.second[c] - off * part.first[c]).max(0.0);
            self.squares[c] += squares + apart * apart * old * new / (old + new);
            self.min[c] = self.min[c].min(part.extremes.min[c]);
            self.max[c] = self.max[c].max(part.extremes.max[c]);
        }
        part.tally.add_to(&mut self.histogram);
        self.tokens += part.tokens;
    }

    /// Standard deviation of each channel (of all its values, not of a sample: numpy's).
    pub fn std(&self) -> Vec<f64> {
        self.squares.iter().map(|s| (s / self.tokens.max(1) as f64).sqrt()).collect()
    }
}

/// The `PROFILE_BINS + 1` edges of the histogram, rising.
pub fn profile_edges() -> Vec<f32> {
    (0..=PROFILE_BINS).map(|i| i as f32 / PER_UNIT - PROFILE_REACH).collect()
}

/// ⌊x · bins a unit⌋, counted from the lowest bin.
#[inline(always)]
fn bin(x: f32) -> u32 {
    const HALF: f32 = PROFILE_BINS as f32 / 2.0;
    let scaled = x * PER_UNIT;
    let scaled = if scaled > -HALF { scaled } else { -HALF };
    index(floor(if scaled < HALF - 1.0 { scaled } else { HALF - 1.0 }) + HALF)
}

/// Some tokens, looked at in one pass.
struct Part {
    tokens: u64,
    /// One value of each channel, which the others' differences are summed from.
    pivot: Vec<f64>,
    /// Σ(x − pivot).
    first: Vec<f64>,
    /// Σ(x − pivot)².
    second: Vec<f64>,
    extremes: ChannelExtremes,
    tally: Tally,
}

impl Part {
    fn of(values: &[f32], channels: usize) -> Self {
        let pivot = values.iter().take(channels).map(|&x| x.into()).collect();
        let mut part = Self {
            tokens: (values.len() / channels) as u64,
            pivot,
            first: vec![0.0; channels],
            second: vec![0.0; channels],
            extremes: ChannelExtremes::new(channels),
            tally: Tally::new(PROFILE_BINS),
        };
        look(&mut part, values, channels);
        part
    }
}

#[multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn look(part: &mut Part, values: &[f32], channels: usize) {
    let whole = channels / TILE * TILE;
    for at in (0..whole).step_by(TILE) {
        // Arrays of a known length: of zipped slices the compiler makes no vector code here.
        let (mut first, mut second, mut pivot) = ([0.0; TILE], [0.0; TILE], [0.0; TILE]);
        let (mut low, mut high) = ([f32::INFINITY; TILE], [f32::NEG_INFINITY; TILE]);
        pivot.copy_from_slice(&part.pivot[at..at + TILE]);
        for token in values.chunks_exact(channels) {
            let Some(token) = token[at..].first_chunk::<TILE>() else { continue };
            for i in 0..TILE {
                let off = f64::from(token[i]) - pivot[i];
                first[i] += off;
                second[i] += off * off;
            }
            for i in 0..TILE {
                low[i] = if token[i] < low[i] { token[i] } else { low[i] };
                high[i] = if token[i] > high[i] { token[i] } else { high[i] };
            }
        }
        part.first[at..at + TILE].copy_from_slice(&first);
        part.second[at..at + TILE].copy_from_slice(&second);
        part.extremes.min[at..at + TILE].copy_from_slice(&low);
        part.extremes.max[at..at + TILE].copy_from_slice(&high);
    }
    for token in values.chunks_exact(channels) {
        for (c, &x) in token.iter().enumerate().skip(whole) {
            let off = f64::from(x) - part.pivot[c];
            part.first[c] += off;
            part.second[c] += off * off;
            part.extremes.min[c] = part.extremes.min[c].min(x);
            part.extremes.max[c] = part.extremes.max[c].max(x);
        }
    }
    part.tally.add(values, bin);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two passes over all values of a channel, and every value compared with every edge.
    fn naive(values: &[f32], channels: usize) -> (Vec<[f64; 4]>, Vec<u64>) {
        let channel = |c: usize| {
            let of: Vec<f64> = values.iter().skip(c).step_by(channels).map(|&v| f64::from(v)).collect();
            let n = of.len() as f64;
            let mean = of.iter().sum::<f64>() / n;
            let std = (of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            let min = of.iter().copied().fold(f64::INFINITY, f64::min);
            [mean, std, min, of.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
        };
        let count = |i: usize| {
            let [low, high] = [i, i + 1].map(|edge| -8.0 + 16.0 * edge as f64 / 512.0);
            let inside = |v: f64| (i == 0 || v >= low) && (i == 511 || v < high);
            values.iter().filter(|&&v| inside(f64::from(v))).count() as u64
        };
        ((0..channels).map(channel).collect(), (0..512).map(count).collect())
    }

    fn check(values: &[f32], channels: usize, parts: usize) {
        let mut profile = ChannelProfile::new(channels);
        values.chunks(parts * channels).for_each(|part| profile.add(part));
        let (moments, counts) = naive(values, channels);
        assert_eq!(profile.tokens, (values.len() / channels) as u64);
        assert_eq!(profile.histogram, counts);
        assert_eq!(profile.histogram.iter().sum::<u64>(), values.len() as u64);
        for (c, [mean, std, min, max]) in moments.into_iter().enumerate() {
            let near = |found: f64, expected: f64| (found - expected).abs() <= 1e-9 * expected.abs();
            assert!(near(profile.mean[c], mean), "{} instead of {mean}", profile.mean[c]);
            assert!(near(profile.std()[c], std), "{} instead of {std}", profile.std()[c]);
            assert_eq!((f64::from(profile.min[c]), f64::from(profile.max[c])), (min, max));
        }
    }

    #[test]
    fn it_is_what_a_naive_computation_finds() {
        let mut rng = rand_mt::Mt::new(2);
        // Far from 0 compared with its spread in channel 0, beyond the bins in channel 2.
        let (offset, scale) = ([5.0, 0.0, -1.0], [1e-3, 1.0, 20.0]);
        let mut draw =
            |i: usize| offset[i % 3] + scale[i % 3] * (f64::from(rng.next_u32()) / 2_f64.powi(31) - 1.0);
        let values: Vec<f32> = (0..69 * 400).map(|i| draw(i) as f32).collect();
        for parts in [1000, 64, 1] {
            check(&values[..3 * 1000], 3, parts);
            // Two tiles of channels, and some more.
            check(&values, 69, parts);
        }
    }

    #[test]
    fn values_at_the_edges_are_in_the_bin_above() {
        let mut values =
            vec![-1e-9_f32, -1e-30, -0.0, 0.0, 8.0, -8.0, f32::MAX, f32::MIN, 7.999_999_5, -8.000_001];
        for edge in profile_edges() {
            values.extend([edge, edge.next_down(), edge.next_up()]);
        }
        let mut all = ChannelProfile::new(1);
        all.add(&values);
        assert_eq!(all.histogram, naive(&values, 1).1);
        assert_eq!(all.histogram.iter().sum::<u64>(), values.len() as u64);
        let mut tiny = ChannelProfile::new(1);
        tiny.add(&[-1e-9]);
        assert_eq!((tiny.histogram[255], tiny.histogram[256]), (1, 0));
    }
}
