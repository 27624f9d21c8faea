//! What a histogram says of the values in it.

use taq_core::stats::Histogram;

/// The share of negative values is not known where more than this lies in the bin that 0 lies in, as after GELU.
pub(crate) const AROUND_ZERO: f64 = 0.2;

/// Mean, standard deviation and share of negative values, each bin taken as evenly filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Moments {
    pub(crate) mean: f64,
    pub(crate) std: f64,
    /// 0 to 1; of the bin that 0 lies in, the part below 0.
    pub(crate) negative: f64,
    /// Share of the values in that bin: by so much `negative` may be wrong at most.
    pub(crate) around_zero: f64,
}

impl Moments {
    /// `None` of an empty histogram.
    pub(crate) fn of(histogram: &Histogram) -> Option<Self> {
        let total: u64 = histogram.counts.iter().sum();
        if total == 0 {
            return None;
        }
        let (mut first, mut second, mut negative, mut around_zero) = (0.0, 0.0, 0.0, 0.0);
        for (edges, &count) in histogram.edges.windows(2).zip(&histogram.counts) {
            let (low, high) = (f64::from(edges[0]), f64::from(edges[1]));
            let share = count as f64 / total as f64;
            first += share * (low + high) / 2.0;
            // The mean square of values that are even between low and high.
            second += share * (low * low + low * high + high * high) / 3.0;
            let below = if high > low {
                (-low / (high - low)).clamp(0.0, 1.0)
            } else {
                f64::from(u8::from(low < 0.0))
            };
            negative += share * below;
            if low < 0.0 && high > 0.0 {
                around_zero = share;
            }
        }
        Some(Self { mean: first, std: (second - first * first).max(0.0).sqrt(), negative, around_zero })
    }

    /// The share of negative values, 0 to 1, where the histogram is fine enough to tell.
    pub(crate) fn known_negative(&self) -> Option<f64> {
        (self.around_zero <= AROUND_ZERO).then_some(self.negative)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_values() {
        // s ← 1664525 s + 1013904223 mod 2³², as in the tests of quantiles; three of them make a bell.
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        };
        let values: Vec<f32> = (0..20_000).map(|_| next() + next() + next() - 1.2).collect();
        let mut histogram = Histogram::between(-1.2, 1.8, 256);
        histogram.add(&values);
        let found = Moments::of(&histogram).unwrap();
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let negative = values.iter().filter(|&&v| v < 0.0).count() as f64 / n;
        // Half a bin is 0.006.
        assert!((found.mean - mean).abs() < 1e-3, "{found:?}, mean {mean}");
        assert!((found.std / variance.sqrt() - 1.0).abs() < 2e-3, "{found:?}, variance {variance}");
        assert!((found.negative - negative).abs() < 2e-3, "{found:?}, negative {negative}");
    }

    #[test]
    fn the_bin_that_holds_zero_is_shared() {
        let histogram = Histogram { counts: vec![10, 30], edges: vec![-2.0, -1.0, 2.0] };
        let found = Moments::of(&histogram).unwrap();
        // A quarter lies in −2 … −1, and a third of the other three quarters below 0.
        assert!((found.negative - 0.5).abs() < 1e-12);
        assert_eq!((found.around_zero, found.known_negative()), (0.75, None));
        assert!((found.mean - (0.25 * -1.5 + 0.75 * 0.5)).abs() < 1e-12);
        assert_eq!(Moments::of(&Histogram { counts: vec![0, 0], edges: vec![0.0, 1.0, 2.0] }), None);
    }

    #[test]
    fn constant_inputs_have_moments() {
        let of = |value: f32| {
            let mut histogram = Histogram::between(value, value, 256);
            histogram.add(&[value; 8]);
            Moments::of(&histogram).unwrap()
        };
        for value in [0.0, 3.0, -3.0] {
            let found = of(value);
            assert!((found.mean - f64::from(value)).abs() < 1e-5 && found.std < 1e-5, "{found:?}");
            assert_eq!(found.negative, if value < 0.0 { 1.0 } else { 0.0 });
        }
    }
}
