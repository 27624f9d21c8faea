//! Prompt lists from text and csv files.

use std::path::Path;

use crate::manifest::Prompts;
use crate::{Error, Result};

/// The prompts of a setting, in order, without blank lines.
///
/// A `.csv` file gives its column `prompt`, or its first column if no header has that name; any other file gives
/// its lines, where `#` begins a comment line. A list without a single prompt is an error.
pub fn load_prompts(source: &Prompts) -> Result<Vec<String>> {
    let prompts = match source {
        Prompts::List(list) => list.clone(),
        Prompts::File(path) => read(path)?,
    };
    if prompts.is_empty() {
        return Err(match source {
            Prompts::List(_) => Error::settings("prompts", "the list is empty; give at least one prompt"),
            Prompts::File(path) => {
                Error::malformed("prompt list", path, "it has no prompt; expected one prompt a line")
            }
        });
    }
    Ok(prompts)
}

fn read(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let is_csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let kind = if is_csv { "csv file of prompts" } else { "prompt list" };
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::malformed(kind, path, format!("line {line} is not UTF-8; save it as UTF-8"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if is_csv {
        return csv_column(text).map_err(|e| Error::malformed(kind, path, e));
    }
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

fn csv_column(text: &str) -> csv::Result<Vec<String>> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut records = reader.records().collect::<csv::Result<Vec<_>>>()?;
    let header = records.first().and_then(|r| r.iter().position(|h| h.eq_ignore_ascii_case("prompt")));
    if header.is_some() {
        records.remove(0);
    }
    let column = header.unwrap_or(0);
    Ok(records.iter().filter_map(|r| r.get(column)).filter(|p| !p.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, content: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        load_prompts(&Prompts::File(path))
    }

    #[test]
    fn text_lines_without_blanks_and_comments() {
        assert_eq!(
            load("p.txt", b"\xef\xbb\xbfcat face\n\n# no\n red heart \r\n").unwrap(),
            ["cat face", "red heart"]
        );
    }

    #[test]
    fn csv_takes_the_prompt_column_or_the_first() {
        assert_eq!(load("p.csv", b"id,Prompt\n1,\"a, b\"\n2,c\n").unwrap(), ["a, b", "c"]);
        assert_eq!(load("p.csv", b"cat face\nred heart\n").unwrap(), ["cat face", "red heart"]);
    }

    #[test]
    fn bad_files_say_what_is_wrong() {
        assert!(load("p.txt", b"\n# only a comment\n").unwrap_err().to_string().contains("it has no prompt"));
        let error = load("p.csv", b"prompt\ncat\n\xff\xfe\n").unwrap_err().to_string();
        assert!(error.contains("line 3 is not UTF-8"), "{error}");
        assert!(load("p.csv", b"a,b\nc\n").unwrap_err().to_string().contains("record"));
    }
}
