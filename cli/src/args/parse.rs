//! Values of flags that are more than a number or a word.

use std::path::Path;

use serde_json::{Map, Value};
use taq_core::BlockId;

/// The settings of a plugin: a JSON object, or the path of a file that holds one.
pub(super) fn settings(text: &str) -> Result<Map<String, Value>, String> {
    let (source, json) = if text.trim_start().starts_with('{') {
        (String::new(), text.to_owned())
    } else if Path::new(text).extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        let json = std::fs::read_to_string(text).map_err(|e| format!("cannot read `{text}`: {e}"))?;
        (format!("`{text}`: "), json)
    } else {
        return Err("expected a JSON object such as '{\"iters\": 500}', or the path of a .json file".into());
    };
    serde_json::from_str(&json).map_err(|e| format!("{source}not a JSON object: {e}"))
}

/// Height and width in pixels: `64`, or `64x96` (height x width).
pub(super) fn image_size(text: &str) -> Result<(usize, usize), String> {
    let number = |s: &str| match s.trim().parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected pixels, as 64 or 64x96 (height x width)".to_owned()),
    };
    match text.split_once(['x', 'X', '×']) {
        Some((height, width)) => Ok((number(height)?, number(width)?)),
        None => number(text).map(|side| (side, side)),
    }
}

/// A number that is finite and not negative.
pub(super) fn not_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(w) if w.is_finite() && w >= 0.0 => Ok(w),
        _ => Err("expected a number of at least 0".into()),
    }
}

/// A share that is more than 0 and at most 1.
pub(super) fn strength(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(s) if s > 0.0 && s <= 1.0 => Ok(s),
        _ => Err("expected a number above 0 and at most 1".into()),
    }
}

/// Widths of integers, such as `2,3,4`; `none` is an empty list.
#[derive(Debug, Clone)]
pub(super) struct Widths(pub(super) Vec<u8>);

/// See [`Widths`].
pub(super) fn widths(text: &str) -> Result<Widths, String> {
    if text == "none" {
        return Ok(Widths(Vec::new()));
    }
    let width = |part: &str| match part.trim().parse() {
        Ok(bits) if (2..=8).contains(&bits) => Ok(bits),
        _ => Err(format!("`{part}` is no number of bits; expected 2 to 8 each, as 3,4,8, or `none`")),
    };
    text.split(',').map(width).collect::<Result<_, _>>().map(Widths)
}

/// The ids of blocks.
pub(super) fn blocks(names: Option<&[String]>) -> Option<Vec<BlockId>> {
    names.map(|names| names.iter().map(|name| BlockId::from(name.as_str())).collect())
}

/// A count of at least 1.
pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number of at least 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_an_object() {
        assert_eq!(settings("{\"iters\": 5}").unwrap()["iters"], 5);
        assert!(settings("{\"iters\": }").unwrap_err().contains("line 1 column 11"));
        assert!(settings("[1]").unwrap_err().contains("expected a JSON object"));
        assert!(settings("no/such.json").unwrap_err().contains("cannot read `no/such.json`"));
    }

    #[test]
    fn image_sizes() {
        assert_eq!(image_size("64"), Ok((64, 64)));
        assert_eq!(image_size("64x96"), Ok((64, 96)));
        assert!(image_size("0").is_err() && image_size("64x").is_err() && image_size("-1").is_err());
    }

    #[test]
    fn widths_are_numbers_of_bits() {
        assert_eq!(widths("2,3, 8").unwrap().0, [2, 3, 8]);
        assert!(widths("none").unwrap().0.is_empty());
        for wrong in ["", "4,", "9", "4-8", "nothing"] {
            assert!(widths(wrong).unwrap_err().contains("expected 2 to 8"), "{wrong}");
        }
    }

    #[test]
    fn strengths_are_shares() {
        assert_eq!(strength("0.6"), Ok(0.6));
        assert_eq!(strength("1"), Ok(1.0));
        assert!(strength("0").is_err() && strength("1.01").is_err() && strength("nan").is_err());
    }

    #[test]
    fn weights_are_finite() {
        assert_eq!(not_negative("1.5"), Ok(1.5));
        assert!(not_negative("nan").is_err() && not_negative("-1").is_err() && not_negative("inf").is_err());
    }
}
