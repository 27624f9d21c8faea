//! Modules in WebAssembly's text format: a policy in a file `NAME.wat` is assembled here, so that writing one takes an
//! editor and nothing else.

use std::borrow::Cow;
use std::path::Path;

use super::limits::MODULE_BYTES;
use super::text::shown;

/// The binary module of a file that ends in `.wat`; any other file as it is.
pub(super) fn assembled<'a>(bytes: &'a [u8], path: &Path) -> Result<Cow<'a, [u8]>, String> {
    if path.extension().is_none_or(|extension| extension != "wat") {
        return Ok(Cow::Borrowed(bytes));
    }
    if bytes.len() > MODULE_BYTES {
        return Err(format!("its text is {} bytes long; at most {MODULE_BYTES} are taken", bytes.len()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!("its text is no UTF-8 (at byte {})", e.valid_up_to()))?;
    wat::parse_str(text).map(Cow::Owned).map_err(|e| refusal(&e.to_string()))
}

/// “it is not valid: line 3, column 5: …” out of a message, an arrow with the place, and the line with a mark.
fn refusal(message: &str) -> String {
    let (reason, rest) = message.split_once('\n').unwrap_or((message, ""));
    let place = rest.lines().next().and_then(|line| line.split_once("<anon>:")).map(|(_, place)| place);
    let reason = shown(reason.as_bytes());
    match place.and_then(|place| place.split_once(':')) {
        Some((line, column)) => format!("its text is not valid at line {line}, column {column}: {reason}"),
        None => format!("its text is not valid: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_a_module_and_mistakes_have_a_place() {
        let text = b"(module\n  (memory (export \"memory\") 1))";
        assert!(assembled(text, Path::new("a/mine.wat")).unwrap().starts_with(b"\0asm"));
        assert_eq!(assembled(text, Path::new("mine.wasm")).unwrap(), text.as_slice());
        for (text, expected) in [
            (
                "(module\n  (func (result i32) i32.const))",
                "its text is not valid at line 2, column 31: expected a i32",
            ),
            ("(module", "its text is not valid at line 1, column 8: expected `)`"),
            ("\u{1b}", "its text is not valid at line 1, column 1: unexpected character '\\u{1b}'"),
            ("(module (func (call $gone)))", "its text is not valid at line 1, column 21: unknown func"),
        ] {
            let found = assembled(text.as_bytes(), Path::new("mine.wat")).unwrap_err();
            assert!(found.starts_with(expected), "{found}");
        }
        assert_eq!(assembled(b"(\xff", Path::new("a.wat")).unwrap_err(), "its text is no UTF-8 (at byte 1)");
        let deep = "(".repeat(1 << 20);
        assert!(assembled(deep.as_bytes(), Path::new("a.wat")).is_err());
        let long = vec![b' '; MODULE_BYTES + 1];
        assert!(assembled(&long, Path::new("a.wat")).unwrap_err().contains("at most 8388608"));
    }
}
