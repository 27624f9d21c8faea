//! Axes: where values lie and which of them are labelled.

/// One axis. Places run from `low` (left or below) to `high`; `low` may be the larger one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub(super) title: String,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Places with their labels.
    pub(super) ticks: Vec<(f64, String)>,
    /// Whether lines are drawn across the panel at the ticks.
    pub(super) mesh: bool,
    /// Whether the labels below an axis stand upright.
    pub(super) upright: bool,
    /// Whether places are decimal logarithms of the values.
    pub(super) log: bool,
}

/// What is taken for 0 on a logarithmic axis whose smallest positive value is unknown.
const TINY: f64 = 1e-12;

impl Axis {
    fn new(title: &str, low: f64, high: f64, ticks: Vec<(f64, String)>) -> Self {
        Self { title: title.to_owned(), low, high, ticks, mesh: true, upright: false, log: false }
    }

    /// From the smallest to the largest value with a little room, except at 0, where bars stand.
    pub(super) fn linear(title: &str, low: f64, high: f64) -> Self {
        let (low, high) = if high > low { (low, high) } else { widened(low) };
        let room = 0.05 * (high - low);
        let low = if low == 0.0 { 0.0 } else { low - room };
        let high = if high == 0.0 { 0.0 } else { high + room };
        Self::exact(title, low, high)
    }

    /// A linear axis with exactly these ends.
    pub(super) fn exact(title: &str, low: f64, high: f64) -> Self {
        let (least, most) = (low.min(high), low.max(high));
        let step = step(most - least, 6);
        let (first, last) = ((least / step - 1e-9).ceil(), (most / step + 1e-9).floor());
        let ticks = (first as i64..=last as i64).map(|i| i as f64 * step);
        Self::new(title, low, high, ticks.map(|v| (v, number(v))).collect())
    }

    /// Logarithmic, over the positive ones of these values. Places are decimal logarithms.
    pub(super) fn log(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = positive.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (v.min(low), v.max(high)));
        let (low, high) = if high > 0.0 { (low, high) } else { (0.1, 1.0) };
        // A little room at both ends, and at least an eighth of a decade.
        let margin = (0.04 * (high / low).log10()).max(0.06);
        let (low, high) = (low.log10() - margin, high.log10() + margin);
        let digits: &[f64] = match high - low {
            decades if decades > 3.5 => &[1.0],
            decades if decades > 1.7 => &[1.0, 2.0, 5.0],
            decades if decades > 0.8 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            _ => &[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        };
        let decades = low.floor() as i32..=high.ceil() as i32;
        let ticks = decades.flat_map(|d| digits.iter().map(move |digit| digit * 10f64.powi(d)));
        let ticks = ticks.filter(|v| (low..=high).contains(&v.log10())).map(|v| (v.log10(), number(v)));
        Self { log: true, ..Self::new(title, low, high, ticks.collect()) }
    }

    /// Noise level, from 1 on the left, where sampling begins, to 0.
    pub(super) fn sigma() -> Self {
        Self::exact("noise level σ (sampling runs from left to right)", 1.0, 0.0)
    }

    /// A band of width 1 for each name. At most `most` of them are labelled.
    pub(super) fn bands(title: &str, names: &[String], most: usize) -> Self {
        let ticks = thinned(names.len(), most).map(|i| (i as f64 + 0.5, names[i].clone())).collect();
        Self { mesh: false, ..Self::new(title, 0.0, names.len() as f64, ticks) }
    }

    /// The same axis with its ends exchanged.
    pub(super) fn reversed(self) -> Self {
        Self { low: self.high, high: self.low, ..self }
    }

    /// The same axis with its labels upright.
    pub(super) fn upright(self) -> Self {
        Self { upright: true, ..self }
    }

    /// Where a value lies: never outside the axis.
    pub(super) fn at(&self, value: f64) -> f64 {
        let place = if self.log { value.max(TINY).log10() } else { value };
        place.clamp(self.low.min(self.high), self.low.max(self.high))
    }
}

/// A range around a single value.
fn widened(value: f64) -> (f64, f64) {
    let half = if value == 0.0 { 1.0 } else { value.abs() * 0.5 };
    (value - half, value + half)
}

/// A step of 1, 2 or 5 times a power of ten that divides a range into at most `most` parts.
fn step(range: f64, most: usize) -> f64 {
    let rough = range / most as f64;
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|d| d * power >= rough * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * power
}

/// Which of `count` things are labelled where there is room for `most`: the first, and every n-th from there.
pub(super) fn thinned(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let stride = count.div_ceil(most.max(1)).max(1);
    let nice = [1, 2, 3, 4, 5, 6, 8, 10, 12].into_iter().find(|&n| n >= stride).unwrap_or(stride);
    (0..count).step_by(nice)
}

/// A number as short as it can be read: three digits, a real minus, powers of ten where there would be many zeros.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { "–".into() };
    }
    let magnitude = value.abs().log10().floor() as i32;
    let text = if (-4..6).contains(&magnitude) {
        let digits = (2 - magnitude).max(0) as usize;
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    } else {
        let digits = value / 10f64.powi(magnitude);
        format!("{}e{magnitude}", number(digits))
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn linear_axes_leave_room_except_at_zero() {
        let axis = Axis::linear("x", -1.0, 7.0);
        assert_eq!((axis.low, axis.high), (-1.4, 7.4));
        assert_eq!(labels(&axis), ["0", "2", "4", "6"]);
        assert_eq!(Axis::linear("x", 0.0, 0.3).low, 0.0);
        assert_eq!(labels(&Axis::linear("x", 0.0, 0.3)), ["0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(&Axis::exact("x", 0.0, 0.3)), ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]);
        // A single value is in the middle of its axis.
        let axis = Axis::linear("x", 4.0, 4.0);
        assert!(axis.low < 4.0 && axis.high > 4.0 && !axis.ticks.is_empty());
    }

    #[test]
    fn sigma_runs_from_one_to_zero() {
        let axis = Axis::sigma();
        assert_eq!((axis.low, axis.high), (1.0, 0.0));
        assert_eq!(labels(&axis), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!((axis.at(1.7), axis.at(-0.1), axis.at(0.25)), (1.0, 0.0, 0.25));
    }

    #[test]
    fn logarithmic_axes_hold_their_values_and_pass_over_zeros() {
        let axis = Axis::log("x", [0.0, 0.3, f64::NAN, 200.0]);
        assert!(10f64.powf(axis.low) < 0.3 && 10f64.powf(axis.high) > 200.0);
        assert_eq!(labels(&axis), ["0.5", "1", "2", "5", "10", "20", "50", "100", "200"]);
        assert_eq!(axis.at(10.0), 1.0);
        assert_eq!(axis.at(0.0), axis.low);
        assert_eq!(
            labels(&Axis::log("x", [1e-6, 1.0])),
            ["1e−6", "1e−5", "0.0001", "0.001", "0.01", "0.1", "1"]
        );
        // Of nothing, or of one value, there is an axis still.
        assert!(Axis::log("x", [0.0]).low < Axis::log("x", [0.0]).high);
        assert!(labels(&Axis::log("x", [3.0])).contains(&"3"));
    }

    #[test]
    fn labels_are_thinned_evenly() {
        let which = |count, most| thinned(count, most).collect::<Vec<_>>();
        assert_eq!(which(4, 10), [0, 1, 2, 3]);
        assert_eq!(which(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(which(28, 5), [0, 6, 12, 18, 24]);
        assert!(which(0, 5).is_empty());
        for count in 1..400 {
            assert!(which(count, 20).len() <= 20, "{count}");
        }
        let names: Vec<String> = (0..6).map(|i| i.to_string()).collect();
        assert_eq!(
            Axis::bands("x", &names, 3).ticks,
            [(0.5, "0".into()), (2.5, "2".into()), (4.5, "4".into())]
        );
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-0.25, "−0.25"),
            (123.4, "123"),
            (0.054_321, "0.0543"),
            (25_000.0, "25000"),
            (-3e-7, "−3e−7"),
            (1.5e9, "1.5e9"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
