//! The rows that are measured on, and sums of squares over them.

use std::collections::BTreeMap;

use mlx_rs::Array;

use super::document::{OutputError, OutputErrors};
use crate::pipeline::SampleSet;
use crate::pipeline::reconstruction::Guided;
use crate::quant::to_vec;
use crate::{Error, Result};

/// Calibration samples; with guidance each has two rows, side by side: with its prompt, and without.
pub(super) struct Rows {
    /// (image, step) of every sample.
    pub samples: Vec<(usize, usize)>,
    /// The steps, rising.
    pub steps: Vec<usize>,
    /// How the two rows of a sample become one output.
    pub guidance: Option<Guided>,
    /// Height and width of the latent.
    pub latent: (usize, usize),
}

impl Rows {
    /// The first images at these steps.
    pub fn new(set: &SampleSet, images: usize, steps: Vec<usize>) -> Self {
        let samples = (0..images).flat_map(|image| steps.iter().map(move |&step| (image, step))).collect();
        let weight = set.manifest.cfg_scale;
        let guidance = (weight > 0.0).then_some(Guided { weight, together: true });
        Self { samples, steps, guidance, latent: set.manifest.latent_size }
    }

    /// Rows of a sample.
    pub fn branches(&self) -> usize {
        1 + usize::from(self.guidance.is_some())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.samples.len() * self.branches()
    }

    /// The position of a row's step among the steps.
    fn position(&self, row: usize) -> usize {
        row / self.branches() % self.steps.len()
    }

    /// Sums of squares of each row's values `[rows, …, channels]`, added to those of its timestep; `rows` are their numbers,
    /// of whole samples.
    pub fn add(&self, sums: &mut Squares, rows: &[usize], values: &Array, share: f64) -> Result<()> {
        let values = values.reshape(&[rows.len() as i32, -1, values.dim(-1)])?;
        let add = |sums: &mut Vec<f64>, squares: &Array| -> Result<()> {
            for (&row, square) in rows.iter().zip(to_vec(&squares.sum_axes(&[1, 2], None)?)?) {
                sums[self.position(row)] += share * f64::from(square);
            }
            Ok(())
        };
        add(&mut sums.velocity, &values.square()?)?;
        match self.guidance {
            Some(guidance) => add(&mut sums.guided, &guidance.squares(&values)?),
            None => Ok(()),
        }
    }
}

/// Sums of squares of the model's output, or of its error, by timestep.
#[derive(Debug, Clone)]
pub(super) struct Squares {
    velocity: Vec<f64>,
    /// Empty without guidance.
    guided: Vec<f64>,
}

impl Squares {
    /// Nothing yet.
    pub fn zero(rows: &Rows) -> Self {
        let steps = rows.steps.len();
        let guided = if rows.guidance.is_some() { vec![0.0; steps] } else { Vec::new() };
        Self { velocity: vec![0.0; steps], guided }
    }

    /// These, of errors, over those of the full-precision output; `buckets` has the name of each timestep's part of the
    /// schedule, `what` says what was quantized.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the output is all 0, or the error is NaN or infinite.
    pub fn over(&self, signal: &Self, buckets: &[String], what: &str) -> Result<OutputErrors> {
        let ratio = |errors: &[f64], signal: &[f64]| -> Result<OutputError> {
            let over = |chosen: &dyn Fn(usize) -> bool| {
                let sum =
                    |values: &[f64]| (0..values.len()).filter(|&i| chosen(i)).map(|i| values[i]).sum::<f64>();
                let ratio = sum(errors) / sum(signal);
                match ratio.is_finite() {
                    true => Ok(ratio),
                    false => Err(Error::NotFinite { what: format!("the model's output with {what}") }),
                }
            };
            let bucket = |name: &String| Ok((name.clone(), over(&|i| buckets[i] == *name)?));
            let buckets = buckets.iter().map(bucket).collect::<Result<BTreeMap<_, _>>>()?;
            Ok(OutputError { all: over(&|_| true)?, buckets })
        };
        let guided = match self.guided.is_empty() {
            true => None,
            false => Some(ratio(&self.guided, &signal.guided)?),
        };
        Ok(OutputErrors { velocity: ratio(&self.velocity, &signal.velocity)?, guided })
    }
}

/// The part of the schedule that a noise level is in: that with the highest lower end that is not above it.
pub(super) fn bucket(definitions: &BTreeMap<String, [f32; 2]>, sigma: f32) -> String {
    let below = definitions.iter().filter(|(_, [low, _])| *low <= sigma);
    below
        .max_by(|a, b| a.1[0].total_cmp(&b.1[0]))
        .map_or_else(|| "other".to_owned(), |(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(guidance: Option<f32>) -> Rows {
        Rows {
            samples: vec![(0, 0), (0, 5), (1, 0), (1, 5)],
            steps: vec![0, 5],
            guidance: guidance.map(|weight| Guided { weight, together: true }),
            latent: (1, 2),
        }
    }

    #[test]
    fn errors_are_those_of_a_plain_loop() {
        let mut rng = rand_mt::Mt::new(3);
        let weight = 3.0;
        let rows = rows(Some(weight));
        assert_eq!(rows.len(), 8);
        // [sample][branch][element], one latent of 1 × 2 with 3 channels a row.
        let mut draw =
            || (0..8 * 6).map(|_| (f64::from(rng.next_u32()) / 2e9 - 1.0) as f32).collect::<Vec<_>>();
        let (errors, output) = (draw(), draw());
        let sums = |values: &[f32]| {
            let mut sums = Squares::zero(&rows);
            // In two parts, as a measurement does.
            for part in [0..4, 4..8_usize] {
                let numbers: Vec<usize> = part.clone().collect();
                let values = Array::from_slice(&values[part.start * 6..part.end * 6], &[4, 1, 2, 3]);
                rows.add(&mut sums, &numbers, &values, 1.0).unwrap();
            }
            sums
        };
        let names = ["early".to_owned(), "late".to_owned()];
        let found = sums(&errors).over(&sums(&output), &names, "it").unwrap();

        let plain = |chosen: &[usize], guided: bool| {
            let total = |values: &[f32]| -> f64 {
                let of_sample = |&sample: &usize| -> f64 {
                    let [with, without] = [0, 1].map(|b| &values[(sample * 2 + b) * 6..][..6]);
                    let element = |i: usize| -> f64 {
                        let (a, b) = (f64::from(with[i]), f64::from(without[i]));
                        if guided { (b + f64::from(weight) * (a - b)).powi(2) } else { a * a + b * b }
                    };
                    (0..6).map(element).sum()
                };
                chosen.iter().map(of_sample).sum()
            };
            total(&errors) / total(&output)
        };
        let near =
            |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        for (found, guided) in [(&found.velocity, false), (found.guided.as_ref().unwrap(), true)] {
            near(found.all, plain(&[0, 1, 2, 3], guided));
            near(found.buckets["early"], plain(&[0, 2], guided));
            near(found.buckets["late"], plain(&[1, 3], guided));
        }
    }

    #[test]
    fn without_guidance_every_row_is_a_sample() {
        let rows = rows(None);
        let mut sums = Squares::zero(&rows);
        let values = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[4, 1, 1, 1]);
        rows.add(&mut sums, &[0, 1, 2, 3], &values, 0.5).unwrap();
        assert_eq!((sums.velocity.as_slice(), sums.guided.len()), ([5.0, 10.0].as_slice(), 0));
        let names = ["late".to_owned(), "late".to_owned()];
        let found = sums.over(&sums, &names, "it").unwrap();
        assert_eq!((found.velocity.all, found.velocity.buckets.len(), found.guided), (1.0, 1, None));
        let error = sums.over(&Squares::zero(&rows), &names, "the weight of a at 4 bits").unwrap_err();
        assert!(error.to_string().contains("output with the weight of a at 4 bits"), "{error}");
    }

    #[test]
    fn every_noise_level_is_in_one_part() {
        let definitions = [("early", [0.7, 1.0]), ("mid", [0.3, 0.7]), ("late", [0.0, 0.3])];
        let definitions = definitions.map(|(name, range)| (name.to_owned(), range)).into();
        let found = [1.0, 0.7, 0.69, 0.3, 0.29, 0.0].map(|sigma| bucket(&definitions, sigma));
        assert_eq!(found, ["early", "early", "mid", "mid", "late", "late"]);
    }
}
