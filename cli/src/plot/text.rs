//! Letters as outlines: plots look the same on every machine, with or without fonts.

use std::io;
use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, OutlineCurve, Point};
use tiny_skia::{Path, PathBuilder};

/// What SVG files ask for; viewers without Noto Sans take another font without serifs.
pub(super) const FAMILY: &str = "Noto Sans, Helvetica, Arial, sans-serif";
/// The size that plotters calls a font's is larger than an em by this factor.
pub(super) const SIZE_PER_EM: f64 = 1.24;

type Loaded = Result<FontRef<'static>, ab_glyph::InvalidFont>;
static REGULAR: LazyLock<Loaded> = LazyLock::new(|| FontRef::try_from_slice(ttf_noto_sans::REGULAR));
static BOLD: LazyLock<Loaded> = LazyLock::new(|| FontRef::try_from_slice(ttf_noto_sans::BOLD));

fn font(bold: bool) -> io::Result<&'static FontRef<'static>> {
    let font = if bold { &BOLD } else { &REGULAR };
    font.as_ref().map_err(|e| io::Error::other(format!("the font that comes with taq: {e}")))
}

/// Width of a line in pixels, at `em` pixels to the em.
pub(super) fn width(text: &str, em: f64, bold: bool) -> io::Result<f64> {
    let font = font(bold)?;
    let units: f32 = text.chars().map(|c| font.h_advance_unscaled(font.glyph_id(c))).sum();
    Ok(f64::from(units) * em / f64::from(font.units_per_em().unwrap_or(1000.0)))
}

/// The letters of a line, from (0, 0) to the right along the baseline, y downwards; `None` of a blank one.
pub(super) fn outline(text: &str, em: f64, bold: bool) -> io::Result<Option<Path>> {
    let font = font(bold)?;
    let scale = em as f32 / font.units_per_em().unwrap_or(1000.0);
    let mut path = PathBuilder::new();
    let mut right = 0.0;
    for c in text.chars() {
        let glyph = font.glyph_id(c);
        if let Some(outline) = font.outline(glyph) {
            add(&mut path, &outline.curves, |p| ((right + p.x) * scale, -p.y * scale));
        }
        right += font.h_advance_unscaled(glyph);
    }
    Ok(path.finish())
}

/// Adds a glyph's curves; a curve that does not begin where the last one ended begins a new contour.
fn add(path: &mut PathBuilder, curves: &[OutlineCurve], place: impl Fn(Point) -> (f32, f32)) {
    let mut last = None;
    for curve in curves {
        let (OutlineCurve::Line(begin, end)
        | OutlineCurve::Quad(begin, _, end)
        | OutlineCurve::Cubic(begin, _, _, end)) = *curve;
        if last != Some(begin) {
            if last.is_some() {
                path.close();
            }
            let (x, y) = place(begin);
            path.move_to(x, y);
        }
        let (x, y) = place(end);
        match *curve {
            OutlineCurve::Line(..) => path.line_to(x, y),
            OutlineCurve::Quad(_, control, _) => {
                let (cx, cy) = place(control);
                path.quad_to(cx, cy, x, y);
            }
            OutlineCurve::Cubic(_, first, second, _) => {
                let ((ax, ay), (bx, by)) = (place(first), place(second));
                path.cubic_to(ax, ay, bx, by, x, y);
            }
        }
        last = Some(end);
    }
    path.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_wide_as_their_letters() {
        let of = |text| width(text, 20.0, false).unwrap();
        assert!((of("ab") - of("a") - of("b")).abs() < 1e-4);
        assert!((width("a", 40.0, false).unwrap() - 2.0 * of("a")).abs() < 1e-4);
        assert!(width("σ", 20.0, true).unwrap() > of("σ"));
        let bounds = outline("HH", 20.0, false).unwrap().unwrap().bounds();
        // A capital stands on the baseline and is about 0.7 em high.
        assert!(bounds.bottom().abs() < 0.1 && (bounds.top() + 14.3).abs() < 0.2, "{bounds:?}");
        assert!(f64::from(bounds.right()) < of("HH") && f64::from(bounds.right()) > 0.8 * of("HH"));
    }

    #[test]
    fn blank_lines_have_no_outline() {
        assert!(outline(" ", 20.0, false).unwrap().is_none());
    }

    #[test]
    fn the_font_has_what_the_figures_say() {
        for bold in [false, true] {
            let font = font(bold).unwrap();
            for c in "σ−×²→≤–·…%".chars() {
                assert_ne!(font.glyph_id(c).0, 0, "{c} in bold = {bold}");
            }
        }
    }
}
