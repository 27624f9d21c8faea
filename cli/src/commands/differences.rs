//! The table of `taq generate --diff-stats`: every image against its full-precision twin.

use taq_core::pipeline::VariantReport;

use crate::output::Table;

/// A row for each image of each variant.
pub(super) fn table(variants: &[VariantReport]) -> Table {
    let headings =
        ["VARIANT", "PSNR", "SSIM", "LATENT ERROR", "LARGEST DIFFERENCE", "MEAN", "WITHIN 1 LEVEL", "PROMPT"];
    let mut table = (1..7).fold(Table::new(&headings), Table::right);
    for variant in variants {
        for image in &variant.images {
            let levels = |show: &dyn Fn(&taq_core::metrics::LevelDifference) -> String| {
                image.levels.as_ref().map(show).unwrap_or_default()
            };
            table.row([
                variant.variant.name().to_owned(),
                image.psnr.map_or_else(|| "equal".to_owned(), |v| format!("{v:.2} dB")),
                format!("{:.4}", image.ssim),
                format!("{:.2} %", 100.0 * image.latent_error),
                levels(&|l| format!("{} of 255", l.max)),
                levels(&|l| format!("{:.2}", l.mean)),
                levels(&|l| format!("{:.2} %", 100.0 * l.within_one)),
                image.prompt.clone(),
            ]);
        }
    }
    table
}
