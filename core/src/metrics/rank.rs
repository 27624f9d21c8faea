//! Whether two lists of numbers rank the same things alike.

/// Spearman's ρ: the correlation of the ranks, 1 where both lists have the same order and −1 where they have the
/// opposite one. Equal values share the mean of their ranks. `None` of fewer than two pairs, of lists of unequal
/// lengths, and where all values of a list are equal.
///
/// ```
/// use taq_core::metrics::spearman;
///
/// assert_eq!(spearman(&[0.1, 0.5, 0.2], &[1.0, 900.0, 7.0]), Some(1.0));
/// ```
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let (a, b) = (ranks(a), ranks(b));
    // Ranks have the same mean whatever the ties.
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let (aa, bb) = (product(&a, &a), product(&b, &b));
    (aa > 0.0 && bb > 0.0).then(|| product(&a, &b) / (aa * bb).sqrt())
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let mean = start as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&i| ranks[i] = mean);
        start += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ties_it_is_the_textbook_formula() {
        let mut rng = rand_mt::Mt::new(5);
        for n in [2_usize, 3, 10, 69] {
            let mut list = || (0..n).map(|_| f64::from(rng.next_u32())).collect::<Vec<_>>();
            let (a, b) = (list(), list());
            let rank = |list: &[f64], i: usize| list.iter().filter(|v| **v <= list[i]).count() as f64;
            let squares: f64 = (0..n).map(|i| (rank(&a, i) - rank(&b, i)).powi(2)).sum();
            let expected = 1.0 - 6.0 * squares / (n * (n * n - 1)) as f64;
            assert!((spearman(&a, &b).unwrap() - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn ties_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        // scipy.stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4]): ranks [1, 2.5, 2.5, 4] and [1, 3, 2, 4], 4.5/√22.5.
        let rho = spearman(&[1.0, 2.0, 2.0, 4.0], &[1.0, 3.0, 2.0, 4.0]).unwrap();
        assert!((rho - 4.5 / 22.5_f64.sqrt()).abs() < 1e-12, "{rho}");
    }

    #[test]
    fn where_there_is_no_order_there_is_no_correlation() {
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[9.0, 5.0, 1.0]), Some(-1.0));
    }
}
