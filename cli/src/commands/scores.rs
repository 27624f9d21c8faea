//! The table of scores that `generate` ends with.

use taq_core::metrics::Interval;
use taq_core::pipeline::{PromptAccuracy, Report, VariantReport};

use crate::output::Table;

/// A row for full precision if it was judged, and two for each variant: its figures, and their intervals.
pub(super) fn table(report: &Report) -> Table {
    let judged = report.evaluator.is_some();
    let mut headings =
        vec!["AGAINST FULL PRECISION", "IMAGES", "PSNR, POOLED", "PSNR, MEAN", "SSIM", "LATENT ERROR"];
    if judged {
        headings.push("PROMPTS RIGHT");
    }
    let mut table = (1..headings.len()).fold(Table::new(&headings), Table::right);
    if let Some(evaluator) = &report.evaluator {
        let accuracy = &evaluator.full_precision;
        let images = (accuracy.judged + accuracy.unknown).to_string();
        let row = |name: &str, images: &str, last: String| {
            [name, images, "", "", "", ""].map(str::to_owned).into_iter().chain([last])
        };
        table.row(row("full precision", &images, share(Some(accuracy))));
        table.row(row("  95 %", "", range(accuracy.interval, 100.0, 1)));
    }
    for variant in &report.variants {
        let last = |text: String| judged.then_some(text);
        table.row(figures(variant).into_iter().chain(last(share(variant.prompt_accuracy.as_ref()))));
        let accuracy = variant.prompt_accuracy.as_ref().and_then(|a| a.interval);
        table.row(intervals(variant).into_iter().chain(last(range(accuracy, 100.0, 1))));
    }
    table
}

fn figures(variant: &VariantReport) -> [String; 6] {
    let decibels = |value: Option<f64>| value.map_or_else(|| "equal".to_owned(), |v| format!("{v:.2} dB"));
    [
        variant.variant.name().to_owned(),
        variant.images.len().to_string(),
        decibels(variant.pooled_psnr),
        decibels(variant.mean_psnr),
        format!("{:.4}", variant.ssim),
        format!("{:.2} %", 100.0 * variant.latent_error),
    ]
}

fn intervals(variant: &VariantReport) -> [String; 6] {
    let i = &variant.intervals;
    [
        "  95 %".to_owned(),
        String::new(),
        range(i.pooled_psnr, 1.0, 2),
        range(i.mean_psnr, 1.0, 2),
        range(i.ssim, 1.0, 4),
        range(i.latent_error, 100.0, 2),
    ]
}

/// `97.3 % of 62` where the evaluator does not know all prompts.
fn share(accuracy: Option<&PromptAccuracy>) -> String {
    let Some((accuracy, share)) = accuracy.and_then(|a| Some((a, a.accuracy?))) else {
        return "none known".into();
    };
    let of = if accuracy.unknown > 0 { format!(" of {}", accuracy.judged) } else { String::new() };
    format!("{:.1} %{of}", 100.0 * share)
}

fn range(interval: Option<Interval>, unit: f64, digits: usize) -> String {
    interval.map_or_else(String::new, |i| format!("{:.digits$}–{:.digits$}", unit * i.low, unit * i.high))
}
