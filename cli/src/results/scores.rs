//! How well each variant did, as text: for the table that `generate` ends with, and for reports.

use taq_core::metrics::Interval;
use taq_core::pipeline::{PromptAccuracy, Report, VariantReport};

/// A figure with its 95 % interval; either may be empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Score {
    pub(crate) value: String,
    pub(crate) interval: String,
}

/// One variant's figures.
pub(crate) struct Row {
    pub(crate) variant: &'static str,
    pub(crate) images: usize,
    /// One for each of [`Scores::headings`].
    pub(crate) scores: Vec<Score>,
}

/// Full precision if it was judged, then the variants.
pub(crate) struct Scores {
    pub(crate) headings: Vec<&'static str>,
    pub(crate) rows: Vec<Row>,
}

impl Scores {
    /// `None` where nothing was compared or judged.
    pub(crate) fn of(report: &Report) -> Option<Self> {
        let judged = report.evaluator.is_some();
        if report.variants.is_empty() && !judged {
            return None;
        }
        let mut headings = vec!["PSNR, pooled", "PSNR, mean", "SSIM", "latent error"];
        headings.extend(judged.then_some("prompts right"));
        let mut rows = Vec::new();
        if let Some(evaluator) = &report.evaluator {
            let accuracy = &evaluator.full_precision;
            let mut scores = vec![Score::default(); 4];
            scores.push(share(Some(accuracy)));
            let images = accuracy.judged + accuracy.unknown;
            rows.push(Row { variant: "full-precision", images, scores });
        }
        rows.extend(report.variants.iter().map(|v| row(v, judged)));
        Some(Self { headings, rows })
    }
}

fn row(variant: &VariantReport, judged: bool) -> Row {
    let i = &variant.intervals;
    let decibels = |value: Option<f64>, interval: Option<Interval>| Score {
        value: value.map_or_else(|| "equal".to_owned(), |v| format!("{v:.2} dB")),
        interval: range(interval, 1.0, 2),
    };
    let mut scores = vec![
        decibels(variant.pooled_psnr, i.pooled_psnr),
        decibels(variant.mean_psnr, i.mean_psnr),
        Score { value: format!("{:.4}", variant.ssim), interval: range(i.ssim, 1.0, 4) },
        Score {
            value: format!("{:.2} %", 100.0 * variant.latent_error),
            interval: range(i.latent_error, 100.0, 2),
        },
    ];
    scores.extend(judged.then(|| share(variant.prompt_accuracy.as_ref())));
    Row { variant: variant.variant.name(), images: variant.images.len(), scores }
}

/// `97.3 % of 62` where the evaluator does not know all prompts.
fn share(accuracy: Option<&PromptAccuracy>) -> Score {
    let interval = range(accuracy.and_then(|a| a.interval), 100.0, 1);
    let Some((accuracy, share)) = accuracy.and_then(|a| Some((a, a.accuracy?))) else {
        return Score { value: "none known".into(), interval };
    };
    let of = if accuracy.unknown > 0 { format!(" of {}", accuracy.judged) } else { String::new() };
    Score { value: format!("{:.1} %{of}", 100.0 * share), interval }
}

fn range(interval: Option<Interval>, unit: f64, digits: usize) -> String {
    interval.map_or_else(String::new, |i| format!("{:.digits$}–{:.digits$}", unit * i.low, unit * i.high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_say_of_how_many_where_some_are_unknown() {
        let interval = Some(Interval { low: 0.5, high: 0.875 });
        let mut accuracy = PromptAccuracy { accuracy: Some(0.75), interval, judged: 8, unknown: 0 };
        let score = |value: &str, interval: &str| Score { value: value.into(), interval: interval.into() };
        assert_eq!(share(Some(&accuracy)), score("75.0 %", "50.0–87.5"));
        accuracy.unknown = 2;
        assert_eq!(share(Some(&accuracy)).value, "75.0 % of 8");
        assert_eq!(share(None), score("none known", ""));
    }
}
