//! The table that `sensitivity` ends with.

use taq_core::pipeline::{RankCorrelation, Sensitivities, SensitivityEntry};

use crate::output::Table;

/// A row for each width: errors over the layers, the layer that suffers most, and how well the estimate ranks them.
pub(super) fn table(document: &Sensitivities) -> Table {
    let headings = ["QUANTIZED ALONE", "BITS", "MEDIAN ERROR", "LARGEST", "ESTIMATE'S RANKS ρ", "OF LAYER"];
    let mut table = (1..5).fold(Table::new(&headings), Table::right);
    document.rank_correlation.iter().for_each(|width| table.row(row(document, width)));
    table
}

fn row(document: &Sensitivities, width: &RankCorrelation) -> [String; 6] {
    let mut layers: Vec<&SensitivityEntry> = document.of(width.weight, width.bits).collect();
    layers.sort_by(|a, b| a.measured.followed().total_cmp(&b.measured.followed()));
    let error = |entry: Option<&&SensitivityEntry>| {
        entry.map_or_else(String::new, |e| format!("{:.2e}", e.measured.followed()))
    };
    let largest = layers.last();
    [
        if width.weight { "weight" } else { "input" }.to_owned(),
        width.bits.to_string(),
        error(layers.get(layers.len() / 2)),
        error(largest),
        width.rho.map_or_else(|| "none".to_owned(), |rho| format!("{rho:.3}")),
        largest.map_or_else(String::new, |e| e.id.to_string()),
    ]
}
