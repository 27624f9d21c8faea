//! Quantiles of a few values at hand, not of a histogram.

/// The quantile `q` (0 to 1), linear between neighbours: `numpy.quantile` of the values in double precision, with
/// its default method, rounded to f32. `None` of no values. NaN counts as larger than any number.
pub fn quantile(values: &[f32], q: f64) -> Option<f32> {
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    quantile_f64(&values, q).map(|value| value as f32)
}

/// The same in double precision throughout.
pub fn quantile_f64(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let below = place as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(sorted.len() - 1)]);
    let share = place - below as f64;
    // From the nearer end, as numpy does: the same to the last bit, and never beyond either end.
    Some(if share < 0.5 { low + (high - low) * share } else { high - (high - low) * (1.0 - share) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: [f64; 8] = [0.0, 0.01, 0.025, 0.5, 0.8125, 0.975, 0.99, 1.0];

    /// s ← 1664525 s + 1013904223 mod 2³², (s >> 8) / 2²⁴, from s = 1.
    fn values(n: usize) -> Vec<f64> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / 16_777_216.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn agrees_with_numpy_to_the_last_bit() {
        // numpy.quantile of numpy 2.4.6, float64.
        let expected: [(usize, [f64; 8]); 4] = [
            (1, [0.236455500125885; 8]),
            (
                2,
                [
                    0.236455500125885,
                    0.23778365135192872,
                    0.23977587819099427,
                    0.30286306142807007,
                    0.34436778724193573,
                    0.36595024466514586,
                    0.36794247150421144,
                    0.3692706227302551,
                ],
            ),
            (
                7,
                [
                    0.05054360628128052,
                    0.06169831991195679,
                    0.0784303903579712,
                    0.36951833963394165,
                    0.6798030659556389,
                    0.7642809718847274,
                    0.7705701458454132,
                    0.7747629284858704,
                ],
            ),
            (
                192,
                [
                    0.001601099967956543,
                    0.011031375527381896,
                    0.017436936497688293,
                    0.4959452450275421,
                    0.7949099652469158,
                    0.9831382095813751,
                    0.9877038633823395,
                    0.9975064992904663,
                ],
            ),
        ];
        for (n, quantiles) in expected {
            let values = values(n);
            assert_eq!(AT.map(|q| quantile_f64(&values, q).unwrap()), quantiles, "of {n} values");
        }
        let ties = [3.0, -1.0, -1.0, 2.5, 0.0, 3.0, 0.001, 1e6];
        // Of the same in float32, taken as float64: 1.2505000000237487, 825000.5250000001, 930000.2099999997.
        let expected = [-1.0, -1.0, -1.0, 1.2505, 3.0, 825_000.5, 930_000.2, 1e6];
        assert_eq!(AT.map(|q| quantile(&ties, q).unwrap()), expected);
    }

    #[test]
    fn of_no_values_there_is_none() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[2.0], 0.5), Some(2.0));
    }
}
