//! How well a variant did: its images and latents against full precision, and what the evaluator sees in them.

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;

use super::report::{ImageScore, Intervals, PromptAccuracy, VariantReport};
use crate::Result;
use crate::evaluator::{Labels, Sight};
use crate::image::Image;
use crate::manifest::Variant;
use crate::metrics::{bootstrap, decibels, level_difference, mse, relative_l2_arrays, ssim};

/// Final latents and images of one variant.
pub(super) struct Generated {
    pub(super) latents: Array,
    pub(super) images: Vec<Image>,
    /// What each batch took, from its encoded prompts to its decoded images.
    pub(super) batches: Vec<BatchTime>,
}

/// What one batch took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BatchTime {
    pub(super) images: usize,
    pub(super) seconds: f64,
}

/// What the evaluator said of one image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Judgement {
    seen_as: String,
    /// `None` if it does not know the prompt.
    recognized: Option<bool>,
}

/// What images are taken for, and whether that is what their prompts name.
pub(super) fn judge(labels: &Labels, prompts: &[String], sights: &[Sight]) -> Vec<Judgement> {
    let judged = |(sight, prompt): (&Sight, &String)| {
        let (class, named) = (sight.class(), labels.classes_of(prompt));
        let recognized = (!named.is_empty()).then(|| named.contains(&class));
        Judgement { seen_as: labels.classes()[class].clone(), recognized }
    };
    sights.iter().zip(prompts).map(judged).collect()
}

/// Prompt accuracy.
pub(super) fn accuracy(judgements: &[Judgement]) -> PromptAccuracy {
    let right: Vec<f64> =
        judgements.iter().filter_map(|j| j.recognized).map(|right| f64::from(u8::from(right))).collect();
    let share = |drawn: &[usize]| mean(drawn, |at| right[at]);
    PromptAccuracy {
        accuracy: (!right.is_empty()).then(|| share(&all(right.len()))),
        interval: bootstrap(right.len(), share),
        judged: right.len(),
        unknown: judgements.len() - right.len(),
    }
}

/// A variant against full precision. `judgements` are of the variant's images.
pub(super) fn compare(
    variant: Variant,
    prompts: &[String],
    reference: &Generated,
    found: &Generated,
    judgements: Option<&[Judgement]>,
) -> Result<VariantReport> {
    let mut images = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let latent = |g: &Generated| g.latents.try_index(i as i32);
        let (a, b) = (&reference.images[i], &found.images[i]);
        let error = mse(a.pixels(), b.pixels())?;
        let judgement = judgements.map(|all| &all[i]);
        images.push(ImageScore {
            prompt: prompt.clone(),
            latent_error: relative_l2_arrays(&latent(found)?, &latent(reference)?)?,
            mse: error,
            psnr: finite(decibels(error)),
            ssim: ssim(a.pixels(), b.pixels(), a.height(), a.width(), 3)?,
            levels: Some(level_difference(a.pixels(), b.pixels())?),
            seen_as: judgement.map(|j| j.seen_as.clone()),
            recognized: judgement.and_then(|j| j.recognized),
        });
    }
    Ok(summarise(variant, images, judgements.map(accuracy)))
}

fn summarise(
    variant: Variant,
    images: Vec<ImageScore>,
    prompt_accuracy: Option<PromptAccuracy>,
) -> VariantReport {
    let count = images.len();
    // All images have one size: the mean of their errors is the error over all pixels.
    let pooled_psnr = |drawn: &[usize]| decibels(mean(drawn, |at| images[at].mse));
    let mean_psnr = |drawn: &[usize]| mean(drawn, |at| decibels(images[at].mse));
    let mean_ssim = |drawn: &[usize]| mean(drawn, |at| images[at].ssim);
    let latent_error = |drawn: &[usize]| mean(drawn, |at| images[at].latent_error);
    let intervals = Intervals {
        pooled_psnr: bootstrap(count, pooled_psnr),
        mean_psnr: bootstrap(count, mean_psnr),
        ssim: bootstrap(count, mean_ssim),
        latent_error: bootstrap(count, latent_error),
    };
    let every = all(count);
    VariantReport {
        variant,
        pooled_psnr: finite(pooled_psnr(&every)),
        mean_psnr: finite(mean_psnr(&every)),
        ssim: mean_ssim(&every),
        latent_error: latent_error(&every),
        intervals,
        prompt_accuracy,
        images,
    }
}

/// The places of all of `count` images.
fn all(count: usize) -> Vec<usize> {
    (0..count).collect()
}

/// Mean over some images; 0 of none.
fn mean(drawn: &[usize], of: impl Fn(usize) -> f64) -> f64 {
    drawn.iter().map(|&at| of(at)).sum::<f64>() / drawn.len().max(1) as f64
}

/// What a JSON document can say.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(mse: f64, ssim: f64, latent_error: f64) -> ImageScore {
        ImageScore {
            prompt: String::new(),
            latent_error,
            mse,
            psnr: finite(decibels(mse)),
            ssim,
            levels: None,
            seen_as: None,
            recognized: None,
        }
    }

    #[test]
    fn pooled_and_mean_psnr_and_their_intervals_are_those_of_numpy() {
        let images = [(0.001, 0.9, 0.1), (0.004, 0.8, 0.2), (0.02, 0.5, 0.4), (0.0005, 0.95, 0.08)];
        let images = images.map(|(m, s, l)| score(m, s, l)).to_vec();
        let report = summarise(Variant::Nearest, images.clone(), None);
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?} {expected}");
        };
        // numpy 2.4.6; resamples as in `metrics::bootstrap`.
        near(report.pooled_psnr, 21.95519810894007);
        near(report.mean_psnr, 25.994850021680094);
        near(report.intervals.pooled_psnr.map(|i| i.low), 18.167301563171954);
        near(report.intervals.pooled_psnr.map(|i| i.high), 31.249387366083);
        near(report.intervals.mean_psnr.map(|i| i.low), 20.24227503252014);
        near(report.intervals.mean_psnr.map(|i| i.high), 31.505149978319906);
        near(report.intervals.latent_error.map(|i| i.low), 0.09);
        near(report.intervals.latent_error.map(|i| i.high), 0.325);
        near(Some(report.ssim), 0.7875);
        near(Some(report.latent_error), 0.195);

        // One equal image makes the mean infinite, and the pooled figure only better.
        let mut equal = images;
        equal[0].mse = 0.0;
        let report = summarise(Variant::Nearest, equal, None);
        assert_eq!((report.mean_psnr, report.intervals.mean_psnr), (None, None));
        near(report.pooled_psnr, 22.1289390696343);
        assert!(report.intervals.latent_error.is_some());
    }

    #[test]
    fn of_one_image_there_are_no_intervals() {
        let report = summarise(Variant::Nearest, vec![score(0.01, 0.9, 0.1)], None);
        assert_eq!((report.pooled_psnr, report.mean_psnr), (Some(20.0), Some(20.0)));
        assert_eq!(report.intervals, Intervals::default());
    }

    #[test]
    fn prompts_that_nobody_knows_are_neither_right_nor_wrong() {
        let judgement = |recognized| Judgement { seen_as: "pig".into(), recognized };
        let judgements = [Some(true), None, Some(false), Some(true), None].map(judgement);
        let found = accuracy(&judgements);
        assert_eq!((found.accuracy, found.judged, found.unknown), (Some(2.0 / 3.0), 3, 2));
        let interval = found.interval.unwrap();
        assert_eq!((interval.low, interval.high), (0.0, 1.0));
        let found = accuracy(&judgements[1..2]);
        assert_eq!((found.accuracy, found.interval, found.judged, found.unknown), (None, None, 0, 1));
    }
}
