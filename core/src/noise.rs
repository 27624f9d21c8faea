//! Random numbers, the same as numpy's legacy generator gives.
//!
//! Start latents follow DiffusionKit (`diffusionkit.mlx`, `get_empty_latent` and `get_noise`):
//! `np.random.seed(seed); np.random.randn(1, C, H, W)`, so that an image of taq and one of DiffusionKit or of the
//! Python ancestor begin with the same noise. The generator is MT19937 (Matsumoto and Nishimura, 1998); normal
//! values come from Marsaglia's polar method, as in numpy's `legacy-distributions.c`. numpy promises that this
//! stream never changes (NEP 19).

use mlx_rs::Array;
use rand_mt::Mt;

use crate::{Error, Result};

/// A deterministic stream of random numbers, equal to `numpy.random.RandomState`.
#[derive(Debug, Clone)]
pub struct Rng {
    mt: Mt,
    /// The polar method makes two normal values at a time; this is the other one.
    spare: Option<f64>,
}

impl Rng {
    /// `np.random.RandomState(seed)`. numpy takes no integer over 32 bits; such a seed counts as the list of its
    /// two halves, `RandomState([low, high])`.
    pub fn new(seed: u64) -> Self {
        let mt = match u32::try_from(seed) {
            Ok(seed) => Mt::new(seed),
            Err(_) => Mt::new_with_key(halves(seed)),
        };
        Self { mt, spare: None }
    }

    /// A stream of its own for one of many tasks of a seed (`"round/mm3"`, `"rows"`): work that is split or
    /// resumed draws the same numbers. It is `RandomState` of a list made of the seed and a hash of the label.
    pub fn stream(seed: u64, label: &str) -> Self {
        let hash = blake3::hash(label.as_bytes());
        let (words, _) = hash.as_bytes().as_chunks::<4>();
        let key: Vec<u32> =
            halves(seed).into_iter().chain(words.iter().map(|w| u32::from_le_bytes(*w))).collect();
        Self { mt: Mt::new_with_key(key), spare: None }
    }

    /// A value in [0, 1) with 53 random bits: `random_sample()`.
    pub fn uniform(&mut self) -> f64 {
        let (high, low) = (self.mt.next_u32() >> 5, self.mt.next_u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// A value of the standard normal distribution: `randn()`.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = x * x + y * y;
            if square < 1.0 && square != 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(factor * x);
                return factor * y;
            }
        }
    }

    /// A whole number from 0 to `max`, both included, every one as likely.
    pub fn up_to(&mut self, max: u64) -> u64 {
        if max == 0 {
            return 0;
        }
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            let draw = match u32::try_from(max) {
                Ok(_) => u64::from(self.mt.next_u32()),
                Err(_) => self.mt.next_u64(),
            };
            if draw & mask <= max {
                return draw & mask;
            }
        }
    }

    /// Puts the values in random order: `shuffle(values)`.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            let j = self.up_to(i as u64) as usize;
            values.swap(i, j);
        }
    }

    /// `count` different numbers below `n`, in random order: `choice(n, count, replace=False)`. All of them, if
    /// there are fewer than `count`.
    pub fn choose(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        self.shuffle(&mut all);
        all.truncate(count);
        all
    }

    /// `randn(*shape)` as an f32 array.
    ///
    /// # Errors
    /// [`Error::Shape`] if a dimension is negative or there are over 2³¹ − 1 elements.
    pub fn normal_array(&mut self, shape: &[i32]) -> Result<Array> {
        let count = elements(shape)?;
        let values: Vec<f32> = (0..count).map(|_| self.normal() as f32).collect();
        Ok(Array::from_slice(&values, shape))
    }
}

/// The noise that an image starts from, `[1, h, w, channels]`, f32, for a latent of `(h, w, channels)`: drawn
/// channel by channel as numpy does for `randn(1, channels, h, w)`.
///
/// # Errors
/// [`Error::Shape`] if there are over 2³¹ − 1 elements.
pub fn initial_noise(seed: u64, (h, w, channels): (usize, usize, usize)) -> Result<Array> {
    let dim = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let shape = [1, dim(h), dim(w), dim(channels)];
    let mut values = vec![0.0; elements(&shape)?];
    let mut rng = Rng::new(seed);
    for c in 0..channels {
        for pixel in 0..h * w {
            values[pixel * channels + c] = rng.normal() as f32;
        }
    }
    Ok(Array::from_slice(&values, &shape))
}

/// A number as two digits in base 2³², the lower first, as numpy splits integers.
fn halves(seed: u64) -> [u32; 2] {
    [(seed & 0xffff_ffff) as u32, (seed >> 32) as u32]
}

fn elements(shape: &[i32]) -> Result<usize> {
    let count = shape.iter().try_fold(1i32, |n, &d| if d < 0 { None } else { n.checked_mul(d) });
    count.map(|n| n.unsigned_abs() as usize).ok_or_else(|| Error::Shape {
        what: "noise".into(),
        expected: "at most 2147483647 elements".into(),
        found: shape.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::host_values;

    // All expected numbers were computed with numpy 2.4.6: np.random.seed(…) and then the call in the comment.

    #[test]
    fn seeds_and_normals_are_numpys() {
        let expected: [(u64, [f64; 6]); 4] = [
            // np.random.randn(6)
            (
                0,
                [
                    1.764052345967664,
                    0.4001572083672233,
                    0.9787379841057392,
                    2.240893199201458,
                    1.8675579901499675,
                    -0.977277879876411,
                ],
            ),
            (
                1234,
                [
                    0.47143516373249306,
                    -1.1909756947064645,
                    1.4327069684260973,
                    -0.3126518960917129,
                    -0.7205887333650116,
                    0.8871629403077386,
                ],
            ),
            (
                4_294_967_295,
                [
                    0.6484086742306527,
                    0.6693235306338161,
                    -1.0805437227474493,
                    0.2845010447986309,
                    0.11388773652167104,
                    0.8676218937929382,
                ],
            ),
            // np.random.seed([3, 7])
            (
                3 + (7 << 32),
                [
                    0.16816241150162592,
                    -0.5121969841737181,
                    -1.8063610987849608,
                    -1.9094720834333587,
                    -0.9491503946571951,
                    f64::NAN,
                ],
            ),
        ];
        for (seed, values) in expected {
            let mut rng = Rng::new(seed);
            for value in values.into_iter().filter(|v| !v.is_nan()) {
                let found = rng.normal();
                // The logarithm of another libm may differ in its last bit.
                assert!((found - value).abs() <= 4.0 * f64::EPSILON * value.abs(), "{seed}: {found} {value}");
            }
        }
    }

    #[test]
    fn uniform_shuffle_and_choice_are_numpys() {
        // np.random.random_sample(4)
        let mut rng = Rng::new(7);
        let found: Vec<f64> = (0..4).map(|_| rng.uniform()).collect();
        assert_eq!(found, [0.07630828937395717, 0.7799187922401146, 0.4384092314408935, 0.7234651778309412]);
        // np.random.shuffle(np.arange(10))
        let mut values: Vec<u8> = (0..10).collect();
        Rng::new(7).shuffle(&mut values);
        assert_eq!(values, [8, 5, 0, 2, 1, 9, 7, 3, 6, 4]);
        // np.random.choice(100, 8, replace=False)
        assert_eq!(Rng::new(7).choose(100, 8), [37, 26, 78, 91, 49, 15, 93, 71]);
    }

    #[test]
    fn the_spare_normal_survives_a_uniform() {
        // np.random.seed(11); three times randn(), then random_sample()
        let mut rng = Rng::new(11);
        let normals: Vec<f32> = (0..3).map(|_| rng.normal() as f32).collect();
        assert_eq!(normals, [1.749_454_7_f32, -0.286_073, -0.484_565_14]);
        assert_eq!(rng.uniform(), 0.012780814590608647);
    }

    #[test]
    fn choosing_is_without_repetition_and_bounded() {
        let mut chosen = Rng::new(3).choose(50, 50);
        chosen.sort_unstable();
        assert_eq!(chosen, (0..50).collect::<Vec<_>>());
        assert_eq!(Rng::new(3).choose(2, 5).len(), 2);
        assert!(Rng::new(3).choose(0, 5).is_empty());
    }

    #[test]
    fn large_bounds_are_reached() {
        let mut rng = Rng::new(1);
        let bound = (1 << 40) + 5;
        let draws: Vec<u64> = (0..200).map(|_| rng.up_to(bound)).collect();
        assert!(draws.iter().all(|&d| d <= bound));
        assert!(draws.iter().any(|&d| d > bound / 2), "the upper half is never drawn");
    }

    #[test]
    fn initial_noise_is_diffusionkits() {
        // np.random.seed(0); np.random.randn(1, 2, 2, 3) has channels before rows and columns.
        let noise = initial_noise(0, (2, 3, 2)).unwrap();
        assert_eq!(noise.shape(), [1, 2, 3, 2]);
        let nchw = [
            1.764052345967664,
            0.4001572083672233,
            0.9787379841057392,
            2.240893199201458,
            1.8675579901499675,
            -0.977277879876411,
            0.9500884175255894,
            -0.1513572082976979,
            -0.10321885179355784,
            0.41059850193837233,
            0.144043571160878,
            1.454273506962975_f64,
        ];
        let values = host_values::<f32>(&noise).unwrap();
        for pixel in 0..6 {
            for channel in 0..2 {
                assert_eq!(values[pixel * 2 + channel], nchw[channel * 6 + pixel] as f32);
            }
        }
        // np.random.randn(1, 16, 64, 64) of seed 0: its element [0, 5, 17, 33], its last one, and its sum.
        let values = host_values::<f32>(&initial_noise(0, (64, 64, 16)).unwrap()).unwrap();
        assert_eq!(values[(17 * 64 + 33) * 16 + 5], 0.34338967720782954_f64 as f32);
        assert_eq!(values.last(), Some(&(0.37474440943381765_f64 as f32)));
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        assert!((sum - -247.69241959596286).abs() < 1e-3, "{sum}");
    }

    #[test]
    fn streams_depend_on_seed_and_label() {
        let first = |seed, label| Rng::stream(seed, label).uniform().to_bits();
        let all = [first(0, "a"), first(0, "b"), first(1, "a"), Rng::new(0).uniform().to_bits()];
        let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), 4);
        assert_eq!(first(0, "a"), first(0, "a"));
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(matches!(initial_noise(0, (1 << 20, 1 << 20, 16)), Err(Error::Shape { .. })));
        assert!(matches!(Rng::new(0).normal_array(&[2, -1]), Err(Error::Shape { .. })));
        assert_eq!(Rng::new(0).normal_array(&[2, 3]).unwrap().shape(), [2, 3]);
    }
}
