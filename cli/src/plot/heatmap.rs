//! A table of values as colours: a row a layer, a column a step.

use plotters::style::RGBColor;

use super::axis::{Axis, number};
use super::canvas::{Area, Painted};
use super::panel::{Panel, header};
use super::style::{DIVERGING, MISSING, SEQUENTIAL, shade};

/// What is drawn.
pub(super) struct Heatmap {
    pub(super) title: String,
    pub(super) about: String,
    /// Names of the rows, from above.
    pub(super) rows: Vec<String>,
    /// Labels of the columns.
    pub(super) columns: Vec<String>,
    /// Row by row; `None` is left grey.
    pub(super) values: Vec<Vec<Option<f64>>>,
    /// What the values are, with their unit.
    pub(super) unit: String,
    pub(super) scale: Scale,
}

/// How values become colours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From `low` to `high`.
    Linear { low: f64, high: f64 },
    /// Their logarithms, from `low` to `high`.
    Log { low: f64, high: f64 },
    /// White at 0, equally far in both directions.
    Around { most: f64 },
}

impl Scale {
    /// From the smallest to the largest positive value.
    pub(super) fn log(values: &[Vec<Option<f64>>]) -> Self {
        let (low, high) = ends(values, |v| v > 0.0).unwrap_or((0.1, 1.0));
        Self::Log { low, high: high.max(low * 1.01) }
    }

    /// As far to both sides as the value farthest from 0.
    pub(super) fn around(values: &[Vec<Option<f64>>]) -> Self {
        let (low, high) = ends(values, |_| true).unwrap_or((-1.0, 1.0));
        let most = high.max(-low);
        Self::Around { most: if most > 0.0 { most } else { 1.0 } }
    }

    /// Where a value lies between the ends, 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = match *self {
            Self::Linear { low, high } => (value - low) / (high - low),
            Self::Log { low, high } => (value.max(low) / low).ln() / (high / low).ln(),
            Self::Around { most } => (value / most + 1.0) / 2.0,
        };
        place.clamp(0.0, 1.0)
    }

    fn colour(&self, value: f64) -> RGBColor {
        let map = if matches!(self, Self::Around { .. }) { &DIVERGING } else { &SEQUENTIAL };
        shade(map, self.place(value))
    }

    fn axis(&self, unit: &str) -> Axis {
        let axis = match *self {
            Self::Linear { low, high } => Axis::exact(unit, low, high),
            Self::Around { most } => Axis::exact(unit, -most, most),
            Self::Log { low, high } => {
                let axis = Axis::log(unit, [low, high]);
                let (low, high) = (low.log10(), high.log10());
                let ticks = axis.ticks.iter().filter(|(at, _)| (low..=high).contains(at)).cloned().collect();
                Axis { low, high, ticks, ..axis }
            }
        };
        Axis { mesh: false, ..axis }
    }
}

fn ends(values: &[Vec<Option<f64>>], keep: impl Fn(f64) -> bool) -> Option<(f64, f64)> {
    let kept = values.iter().flatten().flatten().copied().filter(|v| v.is_finite() && keep(*v));
    kept.fold(None, |ends: Option<(f64, f64)>, v| {
        Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
    })
}

/// Height of a row in pixels: less where there are many.
fn row_height(rows: usize) -> u32 {
    (2400 / rows.max(1) as u32).clamp(8, 40)
}

/// Width of the colour bar with its labels.
const BAR: u32 = 190;

impl Heatmap {
    /// Width and height in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        (2000, 300 + row_height(self.rows.len()) * self.rows.len().max(8) as u32)
    }

    pub(super) fn paint(&self, area: &Area<'_>) -> Painted {
        let area = header(area, &self.title, &self.about, &[])?;
        let (left, right) = area.split_horizontally(area.dim_in_pixel().0 - BAR);
        let panel = self.cells(&left)?;
        for (y, row) in self.values.iter().enumerate() {
            for (x, value) in row.iter().enumerate() {
                let colour = value.map_or(MISSING, |v| self.scale.colour(v));
                let (x, y) = (x as f64, y as f64);
                panel.block((x, y), (x + 1.0, y + 1.0), colour)?;
            }
        }
        self.bar(&right)
    }

    /// The axes around the cells.
    pub(super) fn cells<'a>(&self, area: &Area<'a>) -> Painted<Panel<'a>> {
        let x =
            Axis::bands("noise level σ of each step (sampling runs from left to right)", &self.columns, 20);
        // A label is 24 pixels high.
        let most = self.rows.len() * row_height(self.rows.len()) as usize / 24;
        let y = Axis::bands("", &self.rows, most).reversed();
        Panel::new(area, "", x, y)
    }

    fn bar(&self, area: &Area<'_>) -> Painted {
        const PARTS: usize = 200;
        let axis = self.scale.axis(&self.unit);
        let (low, high) = (axis.low, axis.high);
        let across = Axis { ticks: Vec::new(), ..Axis::exact(" ", 0.0, 1.0) };
        let log = matches!(self.scale, Scale::Log { .. });
        let panel = Panel::new(area, "", across, axis)?;
        for part in 0..PARTS {
            let at = |i: usize| {
                let place = low + (high - low) * i as f64 / PARTS as f64;
                if log { 10f64.powf(place) } else { place }
            };
            panel.block(
                (0.0, at(part)),
                (1.0, at(part + 1)),
                self.scale.colour((at(part) + at(part + 1)) / 2.0),
            )?;
        }
        Ok(())
    }
}

/// Smallest and largest value in words.
pub(super) fn extent(values: &[Vec<Option<f64>>]) -> String {
    ends(values, |_| true)
        .map_or_else(String::new, |(low, high)| format!("From {} to {}.", number(low), number(high)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_reach_from_end_to_end() {
        let values = vec![vec![Some(0.0), Some(0.1), None], vec![Some(10.0), Some(f64::NAN), Some(1.0)]];
        let scale = Scale::log(&values);
        assert_eq!(scale, Scale::Log { low: 0.1, high: 10.0 });
        assert_eq!([0.0, 0.1, 10.0].map(|v| scale.place(v)), [0.0, 0.0, 1.0]);
        assert!((scale.place(1.0) - 0.5).abs() < 1e-12);
        let around = Scale::around(&[vec![Some(-4.0), Some(1.0)]]);
        assert_eq!([-4.0, 0.0, 4.0].map(|v| around.place(v)), [0.0, 0.5, 1.0]);
        assert_eq!(Scale::Linear { low: 2.0, high: 4.0 }.place(3.5), 0.75);
        // Nothing but zeros, or nothing.
        assert_eq!(Scale::around(&[vec![Some(0.0)]]), Scale::Around { most: 1.0 });
        assert_eq!(Scale::log(&[]), Scale::Log { low: 0.1, high: 1.0 });
    }

    #[test]
    fn many_rows_are_lower() {
        assert_eq!([1, 100, 285, 1000].map(row_height), [40, 24, 8, 8]);
    }
}
