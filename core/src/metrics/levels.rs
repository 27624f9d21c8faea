//! How far two images are apart as PNG files hold them, in grey levels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::level;
use crate::{Error, Result};

/// Differences of the values of two images, each rounded to one of 256 levels first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LevelDifference {
    /// The largest, 0 to 255.
    pub max: u8,
    /// The mean of their magnitudes, 0 to 255.
    pub mean: f64,
    /// Share of the values that differ by one level at most, 0 to 1.
    pub within_one: f64,
}

/// Compares two images, values in 0..1.
///
/// # Errors
/// [`Error::Shape`] if they have not the same number of values, or none.
pub fn level_difference(a: &[f32], b: &[f32]) -> Result<LevelDifference> {
    if a.len() != b.len() || a.is_empty() {
        return Err(Error::Shape {
            what: "image to compare".into(),
            expected: format!("{} values, as many as the reference and at least 1", b.len()),
            found: vec![i32::try_from(a.len()).unwrap_or(i32::MAX)],
        });
    }
    let (mut max, mut sum, mut near) = (0_u8, 0_u64, 0_usize);
    for (&a, &b) in a.iter().zip(b) {
        let apart = level(a).abs_diff(level(b));
        max = max.max(apart);
        sum += u64::from(apart);
        near += usize::from(apart <= 1);
    }
    let count = a.len() as f64;
    Ok(LevelDifference { max, mean: sum as f64 / count, within_one: near as f64 / count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_a_file_holds_them() {
        // Levels 0, 128, 255, 10, 20 against 0, 127, 250, 12, 20.
        let a = [-0.2, 0.5, 1.4, 10.0 / 255.0, 20.2 / 255.0];
        let b = [0.001, 127.0 / 255.0, 250.0 / 255.0, 12.0 / 255.0, 19.8 / 255.0];
        let found = level_difference(&a, &b).unwrap();
        assert_eq!(found, LevelDifference { max: 5, mean: 8.0 / 5.0, within_one: 3.0 / 5.0 });
        let same = level_difference(&a, &a).unwrap();
        assert_eq!(same, LevelDifference { max: 0, mean: 0.0, within_one: 1.0 });
        assert!(matches!(level_difference(&a, &b[1..]), Err(Error::Shape { .. })));
        assert!(matches!(level_difference(&[], &[]), Err(Error::Shape { .. })));
    }
}
