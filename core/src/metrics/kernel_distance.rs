//! The kernel distance of two sets of features (KID; Bińkowski et al., arXiv 1801.01401).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Features;
use crate::Result;
use crate::noise::Rng;

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
}

/// The squared maximum mean discrepancy under the kernel `(x·y / width + 1)³`: its unbiased estimate over all images if
/// there are at most 1000 on either side, else its mean over 100 subsets of 1000 images of each, drawn without replacement,
/// always the same ones.
///
/// # Errors
/// [`crate::Error::Shape`] if the features have different widths.
pub fn kernel_distance(a: &Features, b: &Features) -> Result<KernelDistance> {
    subsets(a, b, SUBSET, SUBSETS)
}

fn subsets(a: &Features, b: &Features, size: usize, count: usize) -> Result<KernelDistance> {
    a.same_width(b)?;
    if a.images().max(b.images()) <= size {
        return Ok(KernelDistance { mean: discrepancy(a, b)?, std: None });
    }
    let mut rng = Rng::new(0);
    let mut draw = |f: &Features| f.select(&drawn(&mut rng, f.images(), size.min(f.images())));
    let found: Vec<f64> = (0..count)
        .map(|_| {
            let (a, b) = (draw(a), draw(b));
            discrepancy(&a, &b)
        })
        .collect::<Result<_>>()?;
    let mean = found.iter().sum::<f64>() / count as f64;
    let variance = found.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
    Ok(KernelDistance { mean, std: Some(variance.sqrt()) })
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

fn discrepancy(a: &Features, b: &Features) -> Result<f64> {
    let width = a.width() as f64;
    let kernel = |product: f64| (product / width + 1.0).powi(3);
    let within = |f: &Features| -> Result<f64> {
        let n = f.images();
        let products = f.products(f)?;
        let others = products.iter().enumerate().filter(|(at, _)| at / n != at % n);
        Ok(others.map(|(_, &p)| kernel(p)).sum::<f64>() / (n * (n - 1)) as f64)
    };
    let across = a.products(b)?.into_iter().map(kernel).sum::<f64>() / (a.images() * b.images()) as f64;
    Ok(within(a)? + within(b)? - 2.0 * across)
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
        let found = subsets(&a, &b, 30, 400).unwrap();
        let std = found.std.unwrap();
        // The estimate is unbiased: the mean of 400 strays by a twentieth of their deviation, times 4 to be safe.
        assert!(std > 0.0 && (found.mean - whole).abs() < 4.0 * std / 20.0, "{found:?} {whole}");
        assert_eq!(found, subsets(&a, &b, 30, 400).unwrap());
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
