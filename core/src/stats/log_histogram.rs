//! Counts of values in bins that widen with the magnitude: every quantile to a relative precision, without knowing the range
//! beforehand, and the same whatever the order and the batches (as HdrHistogram and DDSketch, arXiv 1908.10693, do).

/// Bits of a float that a bin leaves out: 6 bits of the mantissa stay, so that a bin is at most 1/64 of its magnitude wide.
const DROPPED: u32 = 17;
/// Bins of one sign.
const ONE_SIGN: usize = 1 << (31 - DROPPED);

/// Counts of finite values by sign and magnitude: 64 bins between one power of two and the next.
#[derive(Clone)]
pub struct LogHistogram {
    /// Magnitudes of positive values, rising, then those of negative ones.
    counts: Vec<u64>,
    /// What is not among `counts` yet. Every other value counts in the other table, so that equal neighbours need not wait
    /// for each other.
    fresh: Vec<[u32; 2]>,
    /// Values in `fresh`.
    pending: usize,
}

impl Default for LogHistogram {
    fn default() -> Self {
        Self { counts: vec![0; 2 * ONE_SIGN], fresh: vec![[0; 2]; 2 * ONE_SIGN], pending: 0 }
    }
}

impl std::fmt::Debug for LogHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHistogram").field("total", &self.total()).finish_non_exhaustive()
    }
}

/// A bin that holds values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogBin {
    /// Lower edge.
    pub low: f64,
    /// Upper edge.
    pub high: f64,
    /// Values between them.
    pub count: u64,
}

impl LogHistogram {
    /// Counts finite values.
    pub fn add(&mut self, values: &[f32]) {
        for values in values.chunks(1 << 30) {
            if self.pending + values.len() > u32::MAX as usize {
                self.counts = (0..self.counts.len()).map(|place| self.count(place)).collect();
                self.fresh.fill([0; 2]);
                self.pending = 0;
            }
            self.pending += values.len();
            let place = |v: f32| (v.to_bits() >> DROPPED) as usize;
            let (pairs, rest) = values.as_chunks::<2>();
            for &[a, b] in pairs {
                self.fresh[place(a)][0] += 1;
                self.fresh[place(b)][1] += 1;
            }
            rest.iter().for_each(|&v| self.fresh[place(v)][0] += 1);
        }
    }

    fn count(&self, place: usize) -> u64 {
        let [a, b] = self.fresh[place];
        self.counts[place] + u64::from(a) + u64::from(b)
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        (0..self.counts.len()).map(|place| self.count(place)).sum()
    }

    /// The bins that are not empty, from the most negative to the most positive.
    pub fn bins(&self) -> impl Iterator<Item = LogBin> + '_ {
        let below = (0..ONE_SIGN).rev().map(|place| LogBin {
            low: -edge(place + 1),
            high: -edge(place),
            count: self.count(ONE_SIGN + place),
        });
        let above = (0..ONE_SIGN).map(|place| LogBin {
            low: edge(place),
            high: edge(place + 1),
            count: self.count(place),
        });
        below.chain(above).filter(|bin| bin.count > 0)
    }

    /// The value below which a share `q` (0 to 1) of the values lies, linear within a bin: at most 1/64 off the quantile of
    /// the values themselves, where that is not between values of different bins. `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let mut left = q.clamp(0.0, 1.0) * self.total() as f64;
        let mut last = None;
        for bin in self.bins() {
            let share = left / bin.count as f64;
            if share <= 1.0 {
                return Some(bin.low + (bin.high - bin.low) * share);
            }
            left -= bin.count as f64;
            last = Some(bin.high);
        }
        last
    }
}

/// The smallest magnitude of a bin.
fn edge(place: usize) -> f64 {
    // What follows the largest finite float would be infinite.
    f64::from(f32::from_bits((place as u32) << DROPPED).min(f32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bell(n: usize, scale: f64) -> Vec<f32> {
        let mut rng = rand_mt::Mt::new(11);
        let mut next = || f64::from(rng.next_u32()) / 2_f64.powi(32);
        (0..n).map(|_| (scale * (next() + next() + next() - 1.4)) as f32).collect()
    }

    #[test]
    fn every_value_is_in_its_bin() {
        let mut values = bell(2000, 3.0);
        values.extend([0.0, -0.0, 1.0, -1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 0.499_999_97]);
        let mut histogram = LogHistogram::default();
        histogram.add(&values);
        assert_eq!(histogram.total(), values.len() as u64);
        let bins: Vec<LogBin> = histogram.bins().collect();
        assert!(bins.windows(2).all(|b| b[0].high <= b[1].low));
        let inside = |bin: &LogBin| {
            let count = |v: &f32| {
                let v = f64::from(*v);
                if bin.high <= 0.0 && v.is_sign_negative() {
                    bin.low < v && v <= bin.high || v == f64::from(f32::MIN) && v == bin.low
                } else {
                    v.is_sign_positive() && bin.low <= v && v < bin.high.max(bin.low + f64::MIN_POSITIVE)
                        || v == f64::from(f32::MAX) && v == bin.high
                }
            };
            values.iter().filter(|v| count(v)).count() as u64
        };
        for bin in &bins {
            assert_eq!(inside(bin), bin.count, "{bin:?}");
            assert!(bin.high - bin.low <= bin.low.abs().max(bin.high.abs()) / 64.0 || bin.high.abs() < 1e-37);
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values_nearly() {
        for scale in [1e-6, 1.0, 1e5] {
            let values = bell(20_000, scale);
            let mut histogram = LogHistogram::default();
            values.chunks(333).for_each(|part| histogram.add(part));
            for q in [0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let expected = f64::from(super::super::quantile(&values, q).unwrap());
                let found = histogram.quantile(q).unwrap();
                assert!((found - expected).abs() <= expected.abs() / 60.0, "{q}: {found}, not {expected}");
            }
        }
        assert_eq!(LogHistogram::default().quantile(0.5), None);
    }

    #[test]
    fn counts_outgrow_their_first_tables() {
        let values = bell(1001, 1.0);
        let (mut once, mut thrice) = (LogHistogram::default(), LogHistogram::default());
        once.add(&values);
        for _ in 0..3 {
            thrice.add(&values);
            // As after four thousand million values.
            thrice.pending = u32::MAX as usize;
        }
        assert_eq!(thrice.total(), 3 * once.total());
        let threefold = once.bins().map(|bin| LogBin { count: 3 * bin.count, ..bin });
        assert!(threefold.eq(thrice.bins()));
    }

    #[test]
    fn order_and_batches_do_not_matter() {
        let mut values = bell(5000, 2.0);
        let mut a = LogHistogram::default();
        a.add(&values);
        values.reverse();
        let mut b = LogHistogram::default();
        values.chunks(17).for_each(|part| b.add(part));
        assert!(a.bins().eq(b.bins()));
    }
}
