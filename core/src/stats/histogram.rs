//! Counts of values in equal bins.

use multiversion::multiversion;
use rayon::prelude::*;

use super::tally::{Tally, floor, index};

/// Values that a task counts at a time.
const SHARE: usize = 1 << 15;

/// Counts of values in equal bins; values beyond the edges count in the outermost bins.
///
/// The edges are exact: bin `i` holds the values `edges[i] ≤ v < edges[i + 1]`, the last bin also its upper edge, as
/// `numpy.histogram` counts with these edges.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// One count a bin.
    pub counts: Vec<u64>,
    /// `counts.len() + 1` edges, rising.
    pub edges: Vec<f32>,
}

/// How a value finds its bin: ⌊(v − low) · bins a unit⌋, each step rounded to f32. No step ever falls when v rises, so
/// every bin is an interval.
#[derive(Debug, Clone, Copy)]
struct Rule {
    low: f32,
    per_unit: f32,
    last: f32,
}

impl Rule {
    fn new(low: f32, high: f32, bins: usize) -> Self {
        Self { low, per_unit: bins as f32 / (high - low), last: bins.saturating_sub(1) as f32 }
    }

    #[inline(always)]
    fn bin(self, v: f32) -> u32 {
        let place = (v - self.low) * self.per_unit;
        // Of NaN, 0.
        let place = if place > 0.0 { place } else { 0.0 };
        index(floor(if place < self.last { place } else { self.last }))
    }

    /// The smallest value from `low` on that belongs to this bin or one above it.
    fn edge(self, bin: u32, high: f32) -> f32 {
        let (mut below, mut above) = (order(self.low), order(high));
        while below < above {
            let middle = below + (above - below) / 2;
            if self.bin(value(middle)) >= bin {
                above = middle;
            } else {
                below = middle + 1;
            }
        }
        value(above)
    }
}

/// Numbers in the order of the floats.
fn order(v: f32) -> i64 {
    let bits = i64::from(v.to_bits() & 0x7fff_ffff);
    if v.is_sign_negative() { -bits } else { bits }
}

fn value(order: i64) -> f32 {
    let magnitude = f32::from_bits(order.unsigned_abs() as u32);
    if order < 0 { -magnitude } else { magnitude }
}

impl Histogram {
    /// Empty, with `bins` equal bins from `low` to `high`.
    ///
    /// Where there is next to nothing between the two (a constant layer), the bins reach a little beyond on both sides: by
    /// 2⁻¹⁴ of the magnitude. Where all is 0, they reach from 0 to 2⁻²⁰.
    pub fn between(low: f32, high: f32, bins: usize) -> Self {
        if bins == 0 {
            return Self::default();
        }
        // The distance between the two must be a number.
        let (low, high) = (low.max(-f32::MAX / 4.0), high.min(f32::MAX / 4.0));
        let reach = low.abs().max(high.abs()) * 2_f32.powi(-14);
        let (low, high) = if reach < 1e-30 {
            // All is 0, which then is an edge.
            (low, low + 2_f32.powi(-20))
        } else if high - low < reach {
            let middle = low + (high - low) / 2.0;
            (middle - reach, middle + reach)
        } else {
            (low, high)
        };
        let rule = Rule::new(low, high, bins);
        let inner = (1..bins as u32).map(|bin| rule.edge(bin, high));
        let edges = [low].into_iter().chain(inner).chain([high]).collect();
        Self { counts: vec![0; bins], edges }
    }

    /// Counts the values. NaN counts in the lowest bin; observing refuses it before.
    pub fn add(&mut self, values: &[f32]) {
        let bins = self.counts.len();
        if bins == 0 {
            return;
        }
        let rule = Rule::new(self.edges[0], self.edges[bins], bins);
        let counted = values.par_chunks(SHARE).map(|share| {
            let (mut tally, mut counts) = (Tally::new(bins), vec![0; bins]);
            count(rule, share, &mut tally);
            tally.add_to(&mut counts);
            counts
        });
        let both = |mut a: Vec<u64>, b: Vec<u64>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        if let Some(counts) = counted.reduce_with(both) {
            self.counts.iter_mut().zip(counts).for_each(|(total, n)| *total += n);
        }
    }

    /// The value below which a share `q` (0 to 1) of the counts lies, linear within a bin; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f32> {
        let total: u64 = self.counts.iter().sum();
        let mut left = q * total as f64;
        for (i, &count) in self.counts.iter().enumerate() {
            if count > 0 && left <= count as f64 {
                let (a, b) = (self.edges[i], self.edges[i + 1]);
                return Some(a + (b - a) * (left / count as f64) as f32);
            }
            left -= count as f64;
        }
        None
    }

    /// The magnitude below which a share `q` of the counts lies, each bin taken at its far edge.
    pub fn magnitude_quantile(&self, q: f64) -> Option<f32> {
        let total: u64 = self.counts.iter().sum();
        let mut bins: Vec<(f32, u64)> =
            self.edges.windows(2).zip(&self.counts).map(|(e, &n)| (e[0].abs().max(e[1].abs()), n)).collect();
        bins.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut left = q * total as f64;
        bins.into_iter().find_map(|(magnitude, n)| {
            left -= n as f64;
            (n > 0 && left <= 0.0).then_some(magnitude)
        })
    }
}

#[multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn count(rule: Rule, values: &[f32], tally: &mut Tally) {
    tally.add(values, |v| rule.bin(v));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.histogram` with these edges of the values clipped to them.
    fn naive(values: &[f32], edges: &[f32]) -> Vec<u64> {
        let bins = edges.len() - 1;
        let mut counts = vec![0; bins];
        for v in values {
            let above = edges[1..bins].iter().filter(|edge| *edge <= v).count();
            counts[above] += 1;
        }
        counts
    }

    fn values(n: usize, low: f32, high: f32) -> Vec<f32> {
        let mut rng = rand_mt::Mt::new(5);
        (0..n).map(|_| low + (high - low) * (f64::from(rng.next_u32()) / 2_f64.powi(32)) as f32).collect()
    }

    #[test]
    fn counts_are_those_of_the_edges_to_the_last_value() {
        for (low, high) in
            [(-0.17, 5.3), (-8.0, 8.0), (1e-8, 3e-8), (-1e6, 3.0), (100.0, 101.0), (-3e38, 3e38)]
        {
            for bins in [1, 7, 256] {
                let mut histogram = Histogram::between(low, high, bins);
                assert_eq!((histogram.edges[0], histogram.edges.len()), (low.max(-f32::MAX / 4.0), bins + 1));
                assert!(histogram.edges.windows(2).all(|e| e[0] < e[1]), "{low} to {high}");
                let width =
                    (f64::from(high.min(f32::MAX / 4.0)) - f64::from(histogram.edges[0])) / bins as f64;
                for (i, &edge) in histogram.edges.iter().enumerate() {
                    let even = f64::from(histogram.edges[0]) + width * i as f64;
                    let off = (f64::from(edge) - even).abs();
                    assert!(
                        off < 1e-3 * width + 1e-6 * f64::from(low.abs().max(high.abs())),
                        "{edge}: {even}"
                    );
                }
                // Evenly, at every edge and beside it, and far outside.
                let mut all = values(10_001, low, high);
                for &edge in &histogram.edges {
                    all.extend([edge, edge.next_down(), edge.next_up()]);
                }
                all.extend([f32::MAX, f32::MIN, 0.0, -0.0]);
                histogram.add(&all[..5000]);
                histogram.add(&all[5000..]);
                assert_eq!(histogram.counts, naive(&all, &histogram.edges), "{low} to {high}, {bins} bins");
                assert_eq!(histogram.counts.iter().sum::<u64>(), all.len() as u64);
            }
        }
    }

    #[test]
    fn batches_do_not_matter() {
        let all = values(40_000, -1.0, 2.0);
        let mut whole = Histogram::between(-0.5, 1.5, 256);
        let mut parts = whole.clone();
        whole.add(&all);
        all.chunks(777).for_each(|part| parts.add(part));
        assert_eq!(whole, parts);
    }

    #[test]
    fn constant_values_have_bins() {
        for v in [0.0, -0.0, 3.0, -1e-30, 1e20, -7.25] {
            let mut histogram = Histogram::between(v, v, 256);
            assert!(histogram.edges.windows(2).all(|e| e[0] < e[1]), "{v}: {:?}", &histogram.edges[..4]);
            histogram.add(&[v; 100]);
            assert_eq!(histogram.counts, naive(&[v; 100], &histogram.edges));
            let near = |found: f32| (found - v).abs() <= 1e-5 * v.abs().max(1.0);
            assert!(near(histogram.quantile(0.5).unwrap()), "{v}: {:?}", histogram.quantile(0.5));
        }
        let mut none = Histogram::between(0.0, 1.0, 0);
        none.add(&[0.5]);
        assert_eq!((none.quantile(0.5), none.magnitude_quantile(0.5)), (None, None));
    }
}
