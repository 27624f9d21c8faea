//! Colours and sizes of all figures. Sizes are in pixels of a PNG file, which is meant to be shown half as large.

use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor, TextStyle};

use super::text::{FAMILY, SIZE_PER_EM};

/// An em of a figure's title.
pub(super) const TITLE: f64 = 32.0;
/// An em of what stands below the title, at axes and in legends.
pub(super) const LABEL: f64 = 24.0;
/// An em of the numbers at axes.
pub(super) const TICK: f64 = 21.0;
/// A line of text with what is between it and the next.
pub(super) const LINE: i32 = 34;
/// An ordinary figure.
pub(super) const SIZE: (u32, u32) = (2000, 1200);

pub(super) const INK: RGBColor = RGBColor(34, 34, 34);
pub(super) const FAINT: RGBColor = RGBColor(110, 110, 110);
pub(super) const PALE: RGBColor = RGBColor(190, 190, 190);
pub(super) const MESH: RGBColor = RGBColor(226, 226, 226);
pub(super) const MISSING: RGBColor = RGBColor(212, 212, 212);

/// Okabe and Ito's colours less yellow, which is lost on white: told apart with every kind of colour vision.
pub(super) const LINES: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
];
pub(super) const BLUE: RGBColor = LINES[0];
pub(super) const ORANGE: RGBColor = LINES[1];
pub(super) const GREEN: RGBColor = LINES[2];
pub(super) const RED: RGBColor = LINES[3];

/// A text style; `em` in pixels.
pub(super) fn text(em: f64, colour: RGBColor) -> TextStyle<'static> {
    styled(em, colour, FontStyle::Normal)
}

/// A bold one.
pub(super) fn bold(em: f64, colour: RGBColor) -> TextStyle<'static> {
    styled(em, colour, FontStyle::Bold)
}

fn styled(em: f64, colour: RGBColor, style: FontStyle) -> TextStyle<'static> {
    FontDesc::new(FontFamily::Name(FAMILY), em * SIZE_PER_EM, style).color(&colour.to_rgba())
}

/// Colours between which a map is linear, at equal distances.
type Map = [(u8, u8, u8); 11];

/// viridis: small to large.
pub(super) const SEQUENTIAL: Map = [
    (68, 1, 84),
    (72, 36, 117),
    (65, 68, 135),
    (53, 95, 141),
    (42, 120, 142),
    (33, 145, 140),
    (34, 168, 132),
    (68, 191, 112),
    (122, 209, 81),
    (189, 223, 38),
    (253, 231, 37),
];

/// ColorBrewer's PuOr the other way round: orange below, white in the middle, purple above.
pub(super) const DIVERGING: Map = [
    (127, 59, 8),
    (179, 88, 6),
    (224, 130, 20),
    (253, 184, 99),
    (254, 224, 182),
    (247, 247, 247),
    (216, 218, 235),
    (178, 171, 210),
    (128, 115, 172),
    (84, 39, 136),
    (45, 0, 75),
];

/// The colour of a place between 0 and 1.
pub(super) fn shade(map: &Map, at: f64) -> RGBColor {
    let place = at.clamp(0.0, 1.0) * 10.0;
    let below = (place as usize).min(9);
    let share = place - below as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    let ((r, g, b), (s, h, c)) = (map[below], map[below + 1]);
    RGBColor(mix(r, s), mix(g, h), mix(b, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_meet_the_colours_of_the_map_and_grow_lighter() {
        assert_eq!(shade(&SEQUENTIAL, -1.0), RGBColor(68, 1, 84));
        assert_eq!(shade(&SEQUENTIAL, 0.5), RGBColor(33, 145, 140));
        assert_eq!(shade(&SEQUENTIAL, 2.0), RGBColor(253, 231, 37));
        // Between (34, 168, 132) at 0.6 and (68, 191, 112) at 0.7.
        assert_eq!(shade(&SEQUENTIAL, 0.65), RGBColor(51, 180, 122));
        let light = |c: RGBColor| 0.2126 * f64::from(c.0) + 0.7152 * f64::from(c.1) + 0.0722 * f64::from(c.2);
        let all: Vec<f64> = (0..=50).map(|i| light(shade(&SEQUENTIAL, f64::from(i) / 50.0))).collect();
        assert!(all.windows(2).all(|w| w[0] < w[1]), "{all:?}");
    }
}
