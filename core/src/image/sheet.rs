//! Comparison sheets: rows and columns of images with labels.

use super::Image;
use super::text::CELL;
use crate::{Error, Result};

const PAPER: [f32; 3] = [1.0; 3];
const INK: [f32; 3] = [0.1; 3];
const BORDER: [f32; 3] = [0.6; 3];

/// Space around a label.
const MARGIN: usize = 4;
/// The longest row label that widens the sheet, in characters.
const ROW_LABEL: usize = 24;

/// How a comparison sheet is laid out.
#[derive(Debug, Clone, Default)]
pub struct SheetLayout {
    /// Labels above the columns; empty for none. What is too long for a column is cut.
    pub columns: Vec<String>,
    /// Labels left of the rows; empty for none.
    pub rows: Vec<String>,
    /// Every pixel becomes a square of this side; 0 picks one that makes small images about 128 pixels wide.
    pub enlarge: usize,
}

/// Puts images side by side: one cell an image, all cells of one size, with a border of a pixel around each.
/// Rows may have different lengths.
///
/// # Errors
/// [`Error::Unsupported`] if there is no image.
pub fn sheet(images: &[Vec<Image>], layout: &SheetLayout) -> Result<Image> {
    let all = || images.iter().flatten();
    let (Some(height), Some(width)) = (all().map(Image::height).max(), all().map(Image::width).max()) else {
        return Err(Error::Unsupported { what: "a comparison sheet needs at least one image".into() });
    };
    let enlarge = match layout.enlarge {
        0 => (128 / width).max(1),
        factor => factor,
    };
    // A cell and the border left of and above it.
    let (cell_h, cell_w) = (height * enlarge + 1, width * enlarge + 1);
    let columns = images.iter().map(Vec::len).max().unwrap_or(0);
    let top = if layout.columns.is_empty() { 0 } else { CELL + 2 * MARGIN };
    let longest = layout.rows.iter().map(|l| l.chars().count().min(ROW_LABEL)).max();
    let left = longest.map_or(0, |n| n * CELL + 2 * MARGIN);

    let mut out = Image::filled(top + images.len() * cell_h + 1, left + columns * cell_w + 1, PAPER);
    for (column, label) in layout.columns.iter().take(columns).enumerate() {
        let room = cell_w.saturating_sub(2 * MARGIN);
        out.write_text(label, MARGIN, left + column * cell_w + MARGIN, room, INK);
    }
    for (row, line) in images.iter().enumerate() {
        let y = top + row * cell_h;
        if let Some(label) = layout.rows.get(row) {
            let middle = y + cell_h.saturating_sub(CELL) / 2;
            out.write_text(label, middle, MARGIN, left.saturating_sub(2 * MARGIN), INK);
        }
        for (column, image) in line.iter().enumerate() {
            let x = left + column * cell_w;
            out.paste(&Image::filled(cell_h + 1, cell_w + 1, BORDER), y, x);
            out.paste(&Image::filled(cell_h - 1, cell_w - 1, PAPER), y + 1, x + 1);
            out.paste(&image.enlarged(enlarge), y + 1, x + 1);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: [f32; 3] = [1.0, 0.0, 0.0];
    const BLUE: [f32; 3] = [0.0, 0.0, 1.0];

    fn has_ink(image: &Image, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> bool {
        rows.clone().any(|y| columns.clone().any(|x| image.get(y, x) == INK))
    }

    #[test]
    fn cells_lie_side_by_side_with_a_border() {
        let (red, blue) = (Image::filled(2, 3, RED), Image::filled(2, 3, BLUE));
        let images = [vec![red.clone(), blue.clone()], vec![blue]];
        let out = sheet(&images, &SheetLayout { enlarge: 2, ..Default::default() }).unwrap();
        assert_eq!((out.height(), out.width()), (2 * 5 + 1, 2 * 7 + 1));
        assert_eq!([out.get(0, 0), out.get(0, 7), out.get(5, 3), out.get(10, 7)], [BORDER; 4]);
        assert_eq!([out.get(1, 1), out.get(4, 6)], [RED; 2]);
        assert_eq!([out.get(1, 8), out.get(4, 13), out.get(6, 1)], [BLUE; 3]);
        // There is no second image in the second row.
        assert_eq!(out.get(8, 10), PAPER);
    }

    #[test]
    fn labels_stand_beside_the_cells() {
        let images = [vec![Image::filled(20, 20, RED); 2], vec![Image::filled(20, 20, BLUE); 2]];
        let layout = SheetLayout {
            columns: vec!["fp32".into(), "W4A8".into()],
            rows: vec!["cat".into(), "heart".into()],
            enlarge: 3,
        };
        let out = sheet(&images, &layout).unwrap();
        let (top, left) = (16, 5 * 8 + 8);
        assert_eq!((out.height(), out.width()), (top + 2 * 61 + 1, left + 2 * 61 + 1));
        assert!(has_ink(&out, 0..top, left..left + 61) && has_ink(&out, 0..top, left + 61..out.width()));
        assert!(has_ink(&out, top..top + 61, 0..left) && has_ink(&out, top + 61..out.height(), 0..left));
        assert!(!has_ink(&out, top..out.height(), left..out.width()));
        assert_eq!([out.get(top + 1, left + 1), out.get(top + 62, left + 62)], [RED, BLUE]);
    }

    #[test]
    fn small_images_are_enlarged_and_large_ones_are_not() {
        let width = |w| {
            let images = [vec![Image::filled(4, w, RED)]];
            sheet(&images, &SheetLayout::default()).unwrap().width()
        };
        assert_eq!(width(32), 4 * 32 + 2);
        assert_eq!(width(512), 512 + 2);
    }

    #[test]
    fn no_images_no_sheet() {
        assert!(matches!(sheet(&[vec![]], &SheetLayout::default()), Err(Error::Unsupported { .. })));
    }
}
