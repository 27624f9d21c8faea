//! Counting: bins are found for many values at once, then counted in several tables, so that equal neighbours need not wait
//! for each other.

/// Values whose bins are found before they are counted.
const BUFFER: usize = 256;
/// Tables that neighbouring values are counted in.
const TABLES: usize = 4;

/// Counts of at most 2³² values.
pub(super) struct Tally {
    tables: Vec<[u32; TABLES]>,
}

impl Tally {
    /// Nothing counted in so many bins.
    pub(super) fn new(bins: usize) -> Self {
        Self { tables: vec![[0; TABLES]; bins] }
    }

    /// Counts values, `bin` saying where each belongs. Inlined: the caller decides for which processor.
    #[inline(always)]
    pub(super) fn add(&mut self, values: &[f32], bin: impl Fn(f32) -> u32) {
        let mut places = [0u32; BUFFER];
        for values in values.chunks(BUFFER) {
            places.iter_mut().zip(values).for_each(|(place, &v)| *place = bin(v));
            let (fours, rest) = places[..values.len()].as_chunks::<TABLES>();
            for four in fours {
                for (table, &place) in four.iter().enumerate() {
                    self.tables[place as usize][table] += 1;
                }
            }
            rest.iter().for_each(|&place| self.tables[place as usize][0] += 1);
        }
    }

    /// Adds the counts to these.
    pub(super) fn add_to(&self, counts: &mut [u64]) {
        counts.iter_mut().zip(&self.tables).for_each(|(total, n)| {
            *total += n.iter().map(|&n| u64::from(n)).sum::<u64>();
        });
    }
}
