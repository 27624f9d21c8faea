//! Counting: bins are found for many values at once, then counted in several tables, so that equal neighbours need not wait
//! for each other.

/// Values whose bins are found before they are counted.
const BUFFER: usize = 256;
/// Tables that neighbouring values are counted in.
const TABLES: usize = 4;

/// Numbers from here on to its double have no fraction in f32.
const WHOLE: f32 = 12_582_912.0;

/// ⌊x⌋ for magnitudes below 2²², in operations that compilers put into vector code; `f32::floor` and `as i32` are calls and
/// cases on processors that have no instruction for just that.
#[inline(always)]
pub(super) fn floor(x: f32) -> f32 {
    let near = (x + WHOLE) - WHOLE;
    near - if near > x { 1.0 } else { 0.0 }
}

/// A whole number from 0 on and below 2²² as an integer.
#[inline(always)]
pub(super) fn index(whole: f32) -> u32 {
    (whole + WHOLE).to_bits() & 0x003f_ffff
}

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
        let (whole, rest) = values.as_chunks::<BUFFER>();
        for values in whole {
            for i in 0..BUFFER {
                places[i] = bin(values[i]);
            }
            for four in places.as_chunks::<TABLES>().0 {
                for (table, &place) in four.iter().enumerate() {
                    self.tables[place as usize][table] += 1;
                }
            }
        }
        rest.iter().for_each(|&v| self.tables[bin(v) as usize][0] += 1);
    }

    /// Adds the counts to these.
    pub(super) fn add_to(&self, counts: &mut [u64]) {
        counts.iter_mut().zip(&self.tables).for_each(|(total, n)| {
            *total += n.iter().map(|&n| u64::from(n)).sum::<u64>();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_floors() {
        let mut rng = rand_mt::Mt::new(8);
        for _ in 0..200_000 {
            let x = (f64::from(rng.next_u32()) / 2_f64.powi(32) * 1040.0 - 520.0) as f32;
            for x in [x, x.round(), x.round().next_down(), x.round().next_up(), x * 1e-9] {
                assert_eq!(floor(x), x.floor(), "{x}");
                if x >= 0.0 {
                    assert_eq!(index(floor(x)), x as u32);
                }
            }
        }
        assert_eq!((floor(4_194_303.5), index(4_194_303.0)), (4_194_303.0, 4_194_303));
    }
}
