//! The table that `profile` ends with.

use taq_core::pipeline::ProfileSummary;

use crate::output::Table;

/// A row for each layer.
pub(super) fn table(layers: &[ProfileSummary]) -> Table {
    let headings = ["INPUT OF", "CHANNELS", "VALUES", "MEAN", "STD", "MIN", "MAX", "AT STEP", "BELOW 0"];
    let mut table = (1..headings.len()).fold(Table::new(&headings), Table::right);
    for layer in layers {
        table.row([
            layer.layer.to_string(),
            layer.channels.to_string(),
            layer.values.to_string(),
            format!("{:.4}", layer.mean),
            format!("{:.4}", layer.std),
            format!("{:.4}", layer.min),
            format!("{:.4}", layer.max),
            layer.largest_at.to_string(),
            format!("{:.1} %", 100.0 * layer.negative),
        ]);
    }
    table
}
