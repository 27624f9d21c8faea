//! The inception score (Salimans et al., arXiv 1606.03498), of any classifier.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Below so many images, the score is taken over all of them at once.
const SPLIT_FROM: usize = 5000;
/// Parts of more images.
const PARTS: usize = 10;

/// The score and how much it varies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InceptionScore {
    /// From 1 to the number of classes.
    pub mean: f64,
    /// Standard deviation over ten parts; absent of fewer than 5000 images, which are not parted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
}

/// `exp(mean KL(p(y | image) ‖ p(y)))` with `p(y)` the mean over the images, of a classifier's logits.
///
/// # Errors
/// [`Error::Shape`] if there are no logits or they have different widths.
pub fn inception_score(logits: &[&[f32]]) -> Result<InceptionScore> {
    let parts = if logits.len() < SPLIT_FROM { 1 } else { PARTS };
    in_parts(logits, parts)
}

fn in_parts(logits: &[&[f32]], parts: usize) -> Result<InceptionScore> {
    let classes = logits.first().map_or(0, |row| row.len());
    if classes == 0 || logits.iter().any(|row| row.len() != classes) || logits.len() < parts {
        return Err(Error::Shape {
            what: "logits of images".into(),
            expected: "one row an image, all of one width".into(),
            found: vec![logits.len() as i32, classes as i32],
        });
    }
    let n = logits.len();
    let score = |k: usize| of_part(&logits[k * n / parts..(k + 1) * n / parts], classes);
    let scores: Vec<f64> = (0..parts).map(score).collect();
    let mean = scores.iter().sum::<f64>() / parts as f64;
    let variance = scores.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / parts as f64;
    Ok(InceptionScore { mean, std: (parts > 1).then(|| variance.sqrt()) })
}

fn of_part(logits: &[&[f32]], classes: usize) -> f64 {
    let shares: Vec<Vec<f64>> = logits.iter().map(|row| softmax(row)).collect();
    let count = shares.len() as f64;
    let mean: Vec<f64> = (0..classes).map(|c| shares.iter().map(|p| p[c]).sum::<f64>() / count).collect();
    let divergence = |p: &Vec<f64>| -> f64 {
        p.iter().zip(&mean).filter(|(p, _)| **p > 0.0).map(|(p, m)| p * (p / m).ln()).sum()
    };
    (shares.iter().map(divergence).sum::<f64>() / count).exp()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&l| (f64::from(l) - f64::from(largest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::waves;
    use super::*;

    #[test]
    fn agrees_with_numpy() {
        // tests/golden/distances.py: the waves, three times as large, as logits.
        let waves = waves(40, 6, 0.0, 0.0);
        let logits: Vec<Vec<f32>> =
            waves.values().chunks(6).map(|row| row.iter().map(|&v| 3.0 * v as f32).collect()).collect();
        let logits: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
        let whole = inception_score(&logits).unwrap();
        assert!((whole.mean - 1.9708524723843543).abs() < 1e-12, "{whole:?}");
        assert_eq!(whole.std, None);
        let parted = in_parts(&logits, 3).unwrap();
        assert!((parted.mean - 1.957974854142911).abs() < 1e-12, "{parted:?}");
        assert!((parted.std.unwrap() - 0.1067038022466374).abs() < 1e-12, "{parted:?}");
    }

    #[test]
    fn the_ends_of_the_scale() {
        // Every image its own class, without doubt: as many as there are classes. All alike: 1.
        let (one, other) = ([900.0, 0.0], [0.0, 900.0]);
        assert_eq!(inception_score(&[&one, &other]).unwrap().mean, 2.0);
        assert_eq!(inception_score(&[&one, &one]).unwrap().mean, 1.0);
        assert!(inception_score(&[]).is_err());
        assert!(inception_score(&[&one, &other[..1]]).is_err());
    }
}
