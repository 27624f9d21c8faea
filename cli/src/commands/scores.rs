//! The table of scores that `generate` ends with.

use crate::output::Table;
use crate::results::scores::Scores;

/// Two rows for each variant: its figures, and their intervals.
pub(super) fn table(scores: &Scores) -> Table {
    let mut headings = vec!["AGAINST FULL PRECISION".to_owned(), "IMAGES".to_owned()];
    headings.extend(scores.headings.iter().map(|h| h.to_uppercase()));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = (1..headings.len()).fold(Table::new(&headings), Table::right);
    for row in &scores.rows {
        let name = if row.variant == "full-precision" { "full precision" } else { row.variant };
        let values = row.scores.iter().map(|s| s.value.clone());
        table.row([name.to_owned(), row.images.to_string()].into_iter().chain(values));
        let intervals = row.scores.iter().map(|s| s.interval.clone());
        table.row(["  95 %".to_owned(), String::new()].into_iter().chain(intervals));
    }
    table
}
