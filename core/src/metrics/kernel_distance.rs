//! The kernel distance of two sets of features (KID; Bińkowski et al., arXiv 1801.01401).
//!
//! The squared maximum mean discrepancy under the kernel `k(x, y) = (x·y / width + 1)³` has two unbiased estimates (Gretton et
//! al., A Kernel Two-Sample Test, JMLR 13, 2012). Of images x and y that know nothing of each other, lemma 6, equation 3:
//!
//! ```text
//! Σ_{i≠j} k(x_i, x_j) / n(n−1) + Σ_{i≠j} k(y_i, y_j) / m(m−1) − 2 Σ_{i,j} k(x_i, y_j) / nm
//! ```
//!
//! Of pairs (x_i, y_i), such as two models' images of one prompt from the same noise, that would be biased downwards: a pair's
//! own k(x_i, y_i) is larger than that of strangers. The U-statistic of the pairs (equation 4 there, the estimator
//! `u-statistic` of the code to Bińkowski et al.) leaves it out, as the sums within a set leave out k(x_i, x_i):
//!
//! ```text
//! Σ_{i≠j} (k(x_i, x_j) + k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i)) / n(n−1)
//! ```
//!
//! It is unbiased for every dependence within a pair, and exactly 0 of a set and itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Features;
use crate::noise::Rng;
use crate::{Error, Result};

/// Images in a subset, and subsets, as in the paper's code and torch-fidelity.
const SUBSET: usize = 1000;
const SUBSETS: usize = 100;

/// The distance and how much it varies between subsets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelDistance {
    /// Unbiased, so that it may be a little below 0.
    pub mean: f64,
    /// Standard deviation over the subsets; absent where all images were taken at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// Whether the images are pairs, of one prompt and noise each, and the estimate that of pairs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paired: bool,
}

/// The distance of sets that know nothing of each other: over all images if there are at most 1000 on either side, else its
/// mean over 100 subsets of 1000 images of each, drawn without replacement, always the same ones.
///
/// # Errors
/// [`Error::Shape`] if the features have different widths.
pub fn kernel_distance(a: &Features, b: &Features) -> Result<KernelDistance> {
    subsets(a, b, Pairing::None, SUBSET, SUBSETS)
}

/// The distance of sets whose images are pairs, the i-th of one with the i-th of the other; a subset holds both images of a
/// pair. Otherwise as [`kernel_distance`].
///
/// # Errors
/// [`Error::Shape`] if the features have different widths or the sets different sizes.
pub fn paired_kernel_distance(a: &Features, b: &Features) -> Result<KernelDistance> {
    if a.images() != b.images() {
        return Err(Error::Shape {
            what: "features of pairs of images".into(),
            expected: format!("[{}, {}]", a.images(), a.width()),
            found: [b.images(), b.width()].map(|n| i32::try_from(n).unwrap_or(i32::MAX)).to_vec(),
        });
    }
    subsets(a, b, Pairing::ByPlace, SUBSET, SUBSETS)
}

/// What an image of one set has to do with those of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairing {
    /// Nothing.
    None,
    /// It is the twin of that at the same place.
    ByPlace,
}

fn subsets(
    a: &Features,
    b: &Features,
    pairing: Pairing,
    size: usize,
    count: usize,
) -> Result<KernelDistance> {
    a.same_width(b)?;
    let paired = pairing == Pairing::ByPlace;
    if a.images().max(b.images()) <= size {
        return Ok(KernelDistance { mean: discrepancy(a, b, pairing)?, std: None, paired });
    }
    let mut rng = Rng::new(0);
    let mut draw = |f: &Features| drawn(&mut rng, f.images(), size.min(f.images()));
    let found: Vec<f64> = (0..count)
        .map(|_| {
            let of_a = draw(a);
            let of_b = if paired { of_a.clone() } else { draw(b) };
            discrepancy(&a.select(&of_a), &b.select(&of_b), pairing)
        })
        .collect::<Result<_>>()?;
    let mean = found.iter().sum::<f64>() / count as f64;
    let variance = found.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
    Ok(KernelDistance { mean, std: Some(variance.sqrt()), paired })
}

/// `take` of `count` places, each at most once: the beginning of a Fisher–Yates shuffle.
fn drawn(rng: &mut Rng, count: usize, take: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).collect();
    for at in 0..take {
        let other = at + rng.up_to((count - at - 1) as u64) as usize;
        places.swap(at, other);
    }
    places.truncate(take);
    places
}

fn discrepancy(a: &Features, b: &Features, pairing: Pairing) -> Result<f64> {
    let width = a.width() as f64;
    let kernel = |product: f64| (product / width + 1.0).powi(3);
    // The mean over all pairs of places but (i, i), where an image would meet itself or its twin.
    let apart = |a: &Features, b: &Features| -> Result<f64> {
        let n = a.images();
        let products = a.products(b)?;
        let others = products.iter().enumerate().filter(|(at, _)| at / n != at % n);
        Ok(others.map(|(_, &p)| kernel(p)).sum::<f64>() / (n * (n - 1)) as f64)
    };
    let across = match pairing {
        Pairing::None => {
            a.products(b)?.into_iter().map(kernel).sum::<f64>() / (a.images() * b.images()) as f64
        }
        Pairing::ByPlace => apart(a, b)?,
    };
    Ok(apart(a, a)? + apart(b, b)? - 2.0 * across)
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::waves;
    use super::*;

    #[test]
    fn agrees_with_numpy() {
        // tests/golden/distances.py.
        for (a, b, expected) in [
            (waves(40, 6, 0.0, 0.0), waves(50, 6, 0.8, 0.1), 0.2064618083902321),
            (waves(40, 6, 0.0, 0.0), waves(40, 6, 0.0, 0.25), 3.035626916459824),
            (waves(9, 16, 0.0, 0.0), waves(12, 16, 0.8, 0.1), 4.404358836901157),
        ] {
            let found = kernel_distance(&a, &b).unwrap();
            assert!((found.mean - expected).abs() < 1e-12 * expected.abs().max(1.0), "{found:?} {expected}");
            assert_eq!(found.std, None);
        }
    }

    #[test]
    fn subsets_average_to_the_whole() {
        let (a, b) = (waves(60, 6, 0.0, 0.0), waves(80, 6, 0.8, 0.1));
        let whole = kernel_distance(&a, &b).unwrap().mean;
        let found = subsets(&a, &b, Pairing::None, 30, 400).unwrap();
        let std = found.std.unwrap();
        // The estimate is unbiased: the mean of 400 strays by a twentieth of their deviation, times 4 to be safe.
        assert!(std > 0.0 && (found.mean - whole).abs() < 4.0 * std / 20.0, "{found:?} {whole}");
        assert_eq!(found, subsets(&a, &b, Pairing::None, 30, 400).unwrap());
    }

    #[test]
    fn pairs_agree_with_numpy() {
        // tests/golden/distances.py.
        for (a, b, expected) in [
            (waves(40, 6, 0.0, 0.0), waves(40, 6, 0.02, 0.0), -0.014430234869237685),
            (waves(40, 6, 0.0, 0.0), waves(40, 6, 0.0, 0.25), 3.16398968671639),
        ] {
            let found = paired_kernel_distance(&a, &b).unwrap();
            assert!((found.mean - expected).abs() < 1e-12 * expected.abs().max(1.0), "{found:?} {expected}");
            assert_eq!((found.std, found.paired), (None, true));
        }
    }

    #[test]
    fn twins_pull_down_only_the_estimate_of_strangers() {
        let a = waves(40, 6, 0.0, 0.0);
        assert_eq!(paired_kernel_distance(&a, &a).unwrap().mean, 0.0);
        assert!(kernel_distance(&a, &a).unwrap().mean < -0.01);
        // Pairs of 40 images differ in which subsets they fall into, not in what they stand for.
        let b = waves(40, 6, 0.3, 0.1);
        let whole = paired_kernel_distance(&a, &b).unwrap().mean;
        let found = subsets(&a, &b, Pairing::ByPlace, 20, 400).unwrap();
        assert!((found.mean - whole).abs() < 4.0 * found.std.unwrap() / 20.0, "{found:?} {whole}");
        let fewer = waves(39, 6, 0.0, 0.0);
        assert!(matches!(paired_kernel_distance(&a, &fewer), Err(Error::Shape { .. })));
    }

    #[test]
    fn what_is_drawn_is_drawn_once() {
        let mut rng = Rng::new(1);
        let mut all = drawn(&mut rng, 20, 20);
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
        assert_eq!(drawn(&mut rng, 20, 3).len(), 3);
    }
}
