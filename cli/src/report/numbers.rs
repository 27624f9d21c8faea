//! Numbers as short as their meaning allows.

/// Digits that are kept of what is drawn: a pixel is a thousandth of a chart.
const DIGITS: usize = 4;

/// The value with [`DIGITS`] significant digits, so that it is short as JSON.
pub(super) fn short(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    format!("{value:.*e}", DIGITS - 1).parse().unwrap_or(value)
}

/// A value for people: `0.0123`, `12.3`, `1.23e-7`.
pub(super) fn text(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 {
        "0".into()
    } else if (1e-3..1e5).contains(&magnitude) {
        let digits = (2 - magnitude.log10().floor() as i32).clamp(0, 6) as usize;
        format!("{value:.digits$}")
    } else {
        format!("{value:.2e}")
    }
}

/// A relative squared error in decibels: `−20.0 dB`.
pub(super) fn decibels(error: f64) -> String {
    if error > 0.0 { format!("{:.1} dB", 10.0 * error.log10()).replace('-', "−") } else { "none".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_kept() {
        assert_eq!(short(123_456.0), 123_500.0);
        assert_eq!(short(-0.000_123_449), -0.000_123_4);
        assert_eq!(short(0.0), 0.0);
        assert!(short(f64::INFINITY).is_infinite());
    }

    #[test]
    fn people_read_three_digits() {
        for (value, expected) in
            [(0.0, "0"), (12.345, "12.3"), (-0.012_345, "-0.0123"), (1234.5, "1234"), (2.5e-7, "2.50e-7")]
        {
            assert_eq!(text(value), expected);
        }
        assert_eq!(decibels(0.01), "−20.0 dB");
        assert_eq!(decibels(0.0), "none");
    }
}
