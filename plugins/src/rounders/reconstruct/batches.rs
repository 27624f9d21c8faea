//! Which rows an iteration sees.

use rand_mt::Mt64;

/// Batches of rows without repetition: every row once before any comes again, in an order that only the seed
/// decides. What does not fill a batch at the end of a round is left out of it.
pub(in crate::rounders) struct Batches {
    rng: Mt64,
    order: Vec<usize>,
    size: usize,
    next: usize,
}

impl Batches {
    /// Batches of `size` of `rows` rows, or of all if there are fewer. Both are at least 1.
    pub(in crate::rounders) fn new(seed: u64, rows: usize, size: usize) -> Self {
        Self { rng: Mt64::new(seed), order: (0..rows).collect(), size: size.min(rows), next: rows }
    }

    /// The next batch.
    pub(in crate::rounders) fn next(&mut self) -> &[usize] {
        if self.next + self.size > self.order.len() {
            self.shuffle();
            self.next = 0;
        }
        self.next += self.size;
        &self.order[self.next - self.size..self.next]
    }

    /// Fisher and Yates.
    fn shuffle(&mut self) {
        for i in (1..self.order.len()).rev() {
            let j = ((u128::from(self.rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
            self.order.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_shows_every_row_once() {
        let mut batches = Batches::new(5, 12, 4);
        let mut orders = Vec::new();
        for _ in 0..3 {
            let mut seen: Vec<usize> = (0..3).flat_map(|_| batches.next().to_vec()).collect();
            orders.push(seen.clone());
            seen.sort_unstable();
            assert_eq!(seen, (0..12).collect::<Vec<_>>());
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn sizes_that_do_not_divide_and_seeds() {
        let mut batches = Batches::new(5, 7, 3);
        for _ in 0..20 {
            let mut batch = batches.next().to_vec();
            batch.sort_unstable();
            batch.dedup();
            assert_eq!(batch.len(), 3);
        }
        assert_eq!(Batches::new(1, 2, 32).next().len(), 2);
        let first = |seed| Batches::new(seed, 100, 10).next().to_vec();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
