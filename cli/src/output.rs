//! Data on stdout: written so that a closed pipe ends the program quietly, and as tables that people read.

use std::io::{self, Write};

use crate::error::Failure;

/// Writes text to stdout.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to stdout.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes a document to stdout as indented JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Failure::Output(e.into()))?;
    text.push('\n');
    print(&text)
}

/// Columns of the terminal, or `None` when stdout is a file or a pipe.
pub(crate) fn terminal_width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns))
}

/// Rows of text in aligned columns; the last column may be wrapped.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table that begins with a row of headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(headings.iter().copied());
        table
    }

    /// Aligns a column (numbered from 0) to the right.
    pub(crate) fn right(mut self, column: usize) -> Self {
        self.right.push(column);
        self
    }

    /// Adds a row.
    pub(crate) fn row<I: IntoIterator<Item: Into<String>>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as lines of at most `width` characters where the last column can be wrapped to fit.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (w, cell) in widths.iter_mut().zip(row) {
                *w = (*w).max(cell.chars().count());
            }
        }
        let before: usize = widths.iter().take(columns.saturating_sub(1)).map(|w| w + 2).sum();
        let room = width.map_or(usize::MAX, |w| w.saturating_sub(before).max(20));
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                if c + 1 == columns && !self.right.contains(&c) {
                    for (i, part) in wrap(cell, room).into_iter().enumerate() {
                        if i > 0 {
                            text.push_str(line.trim_end());
                            text.push('\n');
                            line = " ".repeat(before);
                        }
                        line.push_str(&part);
                    }
                } else if self.right.contains(&c) {
                    line.push_str(&pad);
                    line.push_str(cell);
                    line.push_str("  ");
                } else {
                    line.push_str(cell);
                    line.push_str(&pad);
                    line.push_str("  ");
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Breaks a text at spaces into lines of at most `width` characters; a longer word has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split_whitespace() {
        let chars = word.chars().count();
        if length > 0 && length + 1 + chars > width {
            lines.push(String::new());
            length = 0;
        }
        if let Some(line) = lines.last_mut() {
            if length > 0 {
                line.push(' ');
                length += 1;
            }
            line.push_str(word);
            length += chars;
        }
    }
    lines
}

/// A number of bytes for people: `512 B`, `1.2 MB`, `31.0 GB` (powers of 1000).
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// A time for people: `0.42 s`, `37.1 s`, `12 min 5 s`, `3 h 4 min`.
pub(crate) fn seconds(value: f64) -> String {
    let whole = value.round() as u64;
    match value {
        v if v < 10.0 => format!("{v:.2} s"),
        v if v < 120.0 => format!("{v:.1} s"),
        v if v < 7200.0 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_wrap_the_last_column() {
        let mut table = Table::new(&["name", "size", "what it is"]).right(1);
        table.row(["a", "10", "one two three four five"]);
        let text = table.render(Some(32));
        assert_eq!(
            text,
            "name  size  what it is\n\
             a       10  one two three four\n            five\n"
        );
    }

    #[test]
    fn units_are_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_250_000), "1.2 MB");
        assert_eq!(seconds(0.4249), "0.42 s");
        assert_eq!(seconds(125.4), "2 min 5 s");
        assert_eq!(seconds(11_040.0), "3 h 4 min");
    }
}
