//! Text that comes from a guest: made fit for a terminal, or read as a document.

use serde::de::DeserializeOwned;

use super::limits::TEXT_CHARACTERS;

/// At most [`TEXT_CHARACTERS`] characters on one line, control characters escaped; bytes that are no UTF-8 are
/// replaced.
pub fn shown(bytes: &[u8]) -> String {
    // Four bytes a character at the most: nothing beyond is looked at.
    let head = &bytes[..bytes.len().min(4 * TEXT_CHARACTERS)];
    let text = String::from_utf8_lossy(head);
    let mut shown = String::new();
    for c in text.chars().take(TEXT_CHARACTERS) {
        if c.is_control() || is_invisible(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    if text.chars().nth(TEXT_CHARACTERS).is_some() || head.len() < bytes.len() {
        shown.push('…');
    }
    shown
}

/// Marks that change how what follows them is displayed.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A JSON document of the guest.
pub(crate) fn document<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!("its {what} is no UTF-8 (at byte {})", e.valid_up_to()))?;
    serde_json::from_str(text)
        .map_err(|e| format!("its {what} is not one: {}", shown(e.to_string().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn text_is_cut_and_harmless() {
        assert_eq!(shown("plain Ω".as_bytes()), "plain Ω");
        assert_eq!(shown(b"\x1b[31mred\n"), "\\u{1b}[31mred\\n");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(shown(&[b'x', 0xff]), "x\u{fffd}");
        let long = shown(&[b'y'; 100_000]);
        assert_eq!(long.chars().count(), 501);
        assert!(long.ends_with('…'));
    }
}
