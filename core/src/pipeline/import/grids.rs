//! From the grids of other formats to ours.

use crate::quant::{Granularity, Grid};
use crate::{Result, RoundedLayer};

/// Weights `step · u + minimum` in groups along the rows, u from 0.
pub(super) struct Affine {
    /// Width of an integer.
    pub(super) bits: u8,
    /// `[out_features, in_features]`.
    pub(super) shape: [usize; 2],
    /// Weights in a group; divides a row.
    pub(super) group: usize,
    /// Row-major, 0 to 2^bits − 1.
    pub(super) integers: Vec<u8>,
    /// One for each group.
    pub(super) steps: Vec<f32>,
    /// One for each group.
    pub(super) minima: Vec<f32>,
}

impl Affine {
    /// The same weights on a grid of ours; groups that do not differ within any row become one where `by_row` allows.
    ///
    /// # Errors
    /// [`crate::Error::Settings`] for a width or a group that no grid has.
    pub(super) fn rounded(self, by_row: bool) -> Result<RoundedLayer> {
        let qmin = Grid::new(self.bits, Granularity::Channel, false)?.qmin();
        let offset = f32::from(qmin);
        let zero_point =
            self.steps.iter().zip(&self.minima).map(|(&s, &m)| zero_point(s, offset, m)).collect();
        // From 0 … 2^bits − 1 to −2^(bits − 1) …, which for a byte is the same as exchanging its halves.
        let weight_int = self.integers.iter().map(|&u| (i16::from(u) + i16::from(qmin)) as i8).collect();
        on_grid(self.bits, self.shape, self.group, weight_int, self.steps, zero_point, by_row)
    }
}

/// A layer of these numbers, its grid as plain as they allow: symmetric if all zero points are 0, by rows if the groups of every row
/// are equal and `by_row` allows.
pub(super) fn on_grid(
    bits: u8,
    shape: [usize; 2],
    group: usize,
    weight_int: Vec<i8>,
    mut scale: Vec<f32>,
    mut zero_point: Vec<f32>,
    by_row: bool,
) -> Result<RoundedLayer> {
    let per_row = shape[1] / group.max(1);
    let equal = |values: &[f32]| values.chunks(per_row.max(1)).all(|row| row.iter().all(|v| *v == row[0]));
    let mut granularity = Granularity::Group(group);
    if by_row && equal(&scale) && equal(&zero_point) {
        granularity = Granularity::Channel;
        for values in [&mut scale, &mut zero_point] {
            *values = values.iter().copied().step_by(per_row.max(1)).collect();
        }
    }
    let symmetric = zero_point.iter().all(|z| *z == 0.0);
    let grid = Grid::new(bits, granularity, symmetric)?;
    Ok(RoundedLayer { grid, shape, weight_int, scale, zero_point, learned: None })
}

/// The zero point z of a group whose smallest point is `minimum = step · (offset − z)`: one that gives the minimum back to the bit,
/// if there is one next to what f32 makes of the quotient.
fn zero_point(step: f32, offset: f32, minimum: f32) -> f32 {
    let quotient = minimum / step;
    let neighbours = [
        quotient,
        quotient.next_up(),
        quotient.next_down(),
        quotient.next_up().next_up(),
        quotient.next_down().next_down(),
    ];
    let zero_points = neighbours.map(|q| offset - q);
    let error = |z: &f32| (f64::from(step * (offset - z)) - f64::from(minimum)).abs();
    zero_points.into_iter().min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or(offset - quotient)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::noise::Rng;

    #[test]
    fn minima_come_back_to_the_bit() {
        let mut rng = Rng::new(7);
        let mut uniform = || rng.up_to(1 << 20) as f32 / (1 << 20) as f32;
        for bits in 2..=8 {
            let offset = f32::from(Grid::channel(bits).unwrap().qmin());
            for _ in 0..2000 {
                let (step, zero) = (1e-4 + uniform() * 0.1, offset * (2.0 * uniform() - 1.0));
                // As an export writes them in f32,
                let minimum = step * (offset - zero);
                let found = zero_point(step, offset, minimum);
                assert_eq!(step * (offset - found), minimum, "{step} {zero}");
                // and in f16.
                let half = |x: f32| f16::from_f32(x);
                let (step, minimum) = (half(step), half(minimum));
                let found = zero_point(step.to_f32(), offset, minimum.to_f32());
                assert_eq!(half(step.to_f32() * (offset - found)), minimum, "{step} {zero}");
            }
            // A symmetric grid is recognised.
            assert_eq!(zero_point(0.3, offset, 0.3 * offset), 0.0);
        }
    }

    #[test]
    fn grids_become_plain() {
        let affine = |steps: [f32; 4], minima: [f32; 4], by_row| {
            let affine = Affine {
                bits: 4,
                shape: [2, 4],
                group: 2,
                integers: vec![0, 15, 8, 7, 1, 2, 3, 4],
                steps: steps.into(),
                minima: minima.into(),
            };
            affine.rounded(by_row).unwrap()
        };
        let by_row = affine([0.5, 0.5, 0.25, 0.25], [-4.0, -4.0, -2.0, -2.0], true);
        assert_eq!(by_row.grid, Grid::new(4, Granularity::Channel, true).unwrap());
        assert_eq!(by_row.weight_int, [-8, 7, 0, -1, -7, -6, -5, -4]);
        assert_eq!(by_row.values(), [-4.0, 3.5, 0.0, -0.5, -1.75, -1.5, -1.25, -1.0]);
        let kept = affine([0.5, 0.5, 0.25, 0.25], [-4.0, -4.0, -2.0, -2.0], false);
        assert_eq!(kept.grid.granularity, Granularity::Group(2));
        assert_eq!(kept.values(), by_row.values());
        let differing = affine([0.5, 1.0, 0.25, 0.25], [-4.0, -6.0, -2.0, -2.0], true);
        assert_eq!((differing.grid.granularity, differing.grid.symmetric), (Granularity::Group(2), false));
        assert_eq!(differing.values(), [-4.0, 3.5, 2.0, 1.0, -1.75, -1.5, -1.25, -1.0]);
    }
}
