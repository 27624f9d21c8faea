//! Labels in an 8 × 8 bitmap font (`font8x8`, in the public domain; ASCII and Latin-1).

use font8x8::legacy::{BASIC_LEGACY, LATIN_LEGACY};

use super::Image;

/// Height and width of a character in pixels.
pub(super) const CELL: usize = 8;

/// Rows of a character from the top; in each the lowest bit is on the left. Others than ASCII and Latin-1 are “?”.
fn glyph(c: char) -> [u8; CELL] {
    let code = u32::from(c) as usize;
    let question = BASIC_LEGACY['?' as usize];
    match code {
        0x20..0x7f => BASIC_LEGACY[code],
        0xa0..0x100 => LATIN_LEGACY[code - 0xa0],
        _ => question,
    }
}

impl Image {
    /// Writes a line of text; what does not fit in `width` pixels is replaced by “..”.
    pub(super) fn write_text(&mut self, text: &str, top: usize, left: usize, width: usize, colour: [f32; 3]) {
        for (i, c) in fitted(text, width / CELL).into_iter().enumerate() {
            for (y, row) in glyph(c).into_iter().enumerate() {
                for x in (0..CELL).filter(|x| row >> x & 1 == 1) {
                    self.set(top + y, left + i * CELL + x, colour);
                }
            }
        }
    }
}

/// The text in at most `room` characters.
fn fitted(text: &str, room: usize) -> Vec<char> {
    let mut chars: Vec<char> = text.chars().collect();
    if chars.len() > room {
        chars.truncate(room.saturating_sub(2));
        chars.resize(room, '.');
    }
    chars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_l_is_an_l() {
        let mut image = Image::filled(CELL, 2 * CELL, [1.0; 3]);
        image.write_text("L", 0, CELL, CELL, [0.0; 3]);
        let drawn: Vec<String> = (0..CELL)
            .map(|y| (CELL..2 * CELL).map(|x| if image.get(y, x)[0] == 0.0 { '#' } else { ' ' }).collect())
            .collect();
        let expected =
            ["####    ", " ##     ", " ##     ", " ##     ", " ##   # ", " ##  ## ", "####### ", "        "];
        assert_eq!(drawn, expected);
        assert!((0..CELL).all(|y| (0..CELL).all(|x| image.get(y, x) == [1.0; 3])));
    }

    #[test]
    fn long_text_is_shortened() {
        let text = |text, room| fitted(text, room).into_iter().collect::<String>();
        assert_eq!(text("adaround", 8), "adaround");
        assert_eq!(text("adaround", 6), "adar..");
        assert_eq!(text("adaround", 1), ".");
        assert_eq!(text("adaround", 0), "");
    }

    #[test]
    fn latin_letters_have_glyphs_and_others_a_question_mark() {
        assert_ne!(glyph('é'), glyph('?'));
        assert_ne!(glyph('é'), glyph('e'));
        assert_eq!(glyph('四'), glyph('?'));
        assert_eq!(glyph('\n'), glyph('?'));
        assert_eq!(glyph(' '), [0; CELL]);
    }
}
