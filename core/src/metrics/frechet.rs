//! The Fréchet distance of two sets of features (FID; Heusel et al., arXiv 1706.08500).

use super::Features;
use crate::Result;

/// The distance of two normal distributions with the means and covariances of these features,
/// `|μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr √(C₁ C₂)`, at least 0.
///
/// Covariances are the unbiased ones (numpy's `cov`). With centred features `A`, `B` of n and m images,
/// `C₁ = AᵀA / (n − 1)` and `C₂ = BᵀB / (m − 1)`: the eigenvalues of `C₁ C₂` are the squared singular values of
/// `A Bᵀ / √((n − 1)(m − 1))`. So the trace of the root is their sum, no root of a matrix is taken, and covariances without
/// full rank, of fewer images than features, need no ε on their diagonal.
///
/// It is biased: of few images it is too large, by more the more features there are. Compare only distances of equally
/// many images.
///
/// # Errors
/// [`crate::Error::Shape`] if the features have different widths.
pub fn frechet_distance(a: &Features, b: &Features) -> Result<f64> {
    a.same_width(b)?;
    let ((mean_a, a), (mean_b, b)) = (a.centred(), b.centred());
    let degrees = |f: &Features| (f.images() - 1) as f64;
    let trace = |f: &Features| f.values().iter().map(|v| v * v).sum::<f64>() / degrees(f);
    let means: f64 = mean_a.iter().zip(&mean_b).map(|(a, b)| (a - b).powi(2)).sum();
    let root: f64 =
        a.singular_values_of_product(&b)?.iter().sum::<f64>() / (degrees(&a) * degrees(&b)).sqrt();
    Ok((means + trace(&a) + trace(&b) - 2.0 * root).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::waves;
    use super::*;

    #[test]
    fn agrees_with_the_square_root_of_a_matrix_by_scipy() {
        // tests/golden/distances.py: scipy.linalg.sqrtm 1.17.1 on numpy.cov; all cases but the last have full rank.
        for (a, b, expected, near) in [
            (waves(40, 6, 0.0, 0.0), waves(50, 6, 0.8, 0.1), 0.5501208035760436, 1e-9),
            (waves(40, 6, 0.0, 0.0), waves(40, 6, 0.0, 0.25), 3.4374999916180924, 1e-9),
            (waves(9, 16, 0.0, 0.0), waves(12, 16, 0.8, 0.1), 20.734987344442374, 1e-6),
        ] {
            let found = frechet_distance(&a, &b).unwrap();
            assert!((found - expected).abs() < near * expected.max(1.0), "{found} {expected}");
            let back = frechet_distance(&b, &a).unwrap();
            assert!((found - back).abs() < 1e-9, "{found} {back}");
        }
    }

    #[test]
    fn of_the_same_images_it_is_nothing() {
        let a = waves(40, 6, 0.3, 0.2);
        assert!(frechet_distance(&a, &a).unwrap() < 1e-9);
        assert!(frechet_distance(&a, &waves(40, 5, 0.3, 0.2)).is_err());
    }
}
