//! Shapes on pixels, smooth at their edges.

use plotters_backend::text_anchor::{HPos, Pos, VPos};
use plotters_backend::{BackendColor, BackendCoord, FontTransform};
use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, Transform,
};

use super::text;

/// Draws on a pixmap.
pub(super) struct Raster<'a>(pub(super) &'a mut Pixmap);

fn paint(colour: BackendColor) -> Paint<'static> {
    let (r, g, b) = colour.rgb;
    let mut paint = Paint::default();
    paint.set_color(Color::from_rgba8(r, g, b, (colour.alpha.clamp(0.0, 1.0) * 255.0).round() as u8));
    paint.anti_alias = true;
    paint
}

fn float((x, y): BackendCoord) -> (f32, f32) {
    (x as f32, y as f32)
}

fn path(points: impl IntoIterator<Item = BackendCoord>, close: bool) -> Option<Path> {
    let mut points = points.into_iter().map(float);
    let mut path = PathBuilder::new();
    let (x, y) = points.next()?;
    path.move_to(x, y);
    points.for_each(|(x, y)| path.line_to(x, y));
    if close {
        path.close();
    }
    path.finish()
}

impl Raster<'_> {
    pub(super) fn size(&self) -> (u32, u32) {
        (self.0.width(), self.0.height())
    }

    /// A filled rectangle; the pixels at its right and lower edge are outside, so that neighbours do not overlap.
    pub(super) fn block(&mut self, a: BackendCoord, b: BackendCoord, colour: BackendColor) {
        let ((ax, ay), (bx, by)) = (float(a), float(b));
        if let Some(rect) = Rect::from_ltrb(ax.min(bx), ay.min(by), ax.max(bx), ay.max(by)) {
            self.0.fill_rect(rect, &paint(colour), Transform::identity(), None);
        }
    }

    pub(super) fn line(
        &mut self,
        points: impl IntoIterator<Item = BackendCoord>,
        width: u32,
        colour: BackendColor,
    ) {
        let Some(path) = path(points, false) else { return };
        self.stroke(&path, width, colour);
    }

    fn stroke(&mut self, path: &Path, width: u32, colour: BackendColor) {
        let stroke = Stroke {
            width: width as f32,
            line_cap: LineCap::Butt,
            line_join: LineJoin::Round,
            ..Stroke::default()
        };
        self.0.stroke_path(path, &paint(colour), &stroke, Transform::identity(), None);
    }

    pub(super) fn polygon(&mut self, points: impl IntoIterator<Item = BackendCoord>, colour: BackendColor) {
        if let Some(path) = path(points, true) {
            self.fill(&path, colour, Transform::identity());
        }
    }

    pub(super) fn circle(
        &mut self,
        centre: BackendCoord,
        radius: u32,
        width: Option<u32>,
        colour: BackendColor,
    ) {
        let (x, y) = float(centre);
        let Some(path) = PathBuilder::from_circle(x, y, radius as f32) else { return };
        match width {
            Some(width) => self.stroke(&path, width, colour),
            None => self.fill(&path, colour, Transform::identity()),
        }
    }

    /// A line of text, placed as plotters' SVG files place it.
    pub(super) fn text(
        &mut self,
        line: &Line<'_>,
        at: BackendCoord,
        colour: BackendColor,
    ) -> std::io::Result<()> {
        let Some(path) = text::outline(line.text, line.em, line.bold)? else { return Ok(()) };
        let width = text::width(line.text, line.em, line.bold)?;
        let left = match line.anchor.h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        let down = match line.anchor.v_pos {
            VPos::Top => 0.76 * line.em,
            VPos::Center => 0.27 * line.em,
            VPos::Bottom => -0.27 * line.em,
        };
        let degrees = match line.turned {
            FontTransform::Rotate90 => 90.0,
            FontTransform::Rotate180 => 180.0,
            FontTransform::Rotate270 => 270.0,
            _ => 0.0,
        };
        let (x, y) = float(at);
        let place = Transform::from_translate(left as f32, down as f32)
            .post_concat(Transform::from_rotate(degrees))
            .post_translate(x, y);
        self.fill(&path, colour, place);
        Ok(())
    }

    fn fill(&mut self, path: &Path, colour: BackendColor, place: Transform) {
        self.0.fill_path(path, &paint(colour), FillRule::Winding, place, None);
    }
}

/// What a line of text is, apart from its place and colour.
pub(super) struct Line<'a> {
    pub(super) text: &'a str,
    pub(super) em: f64,
    pub(super) bold: bool,
    pub(super) anchor: Pos,
    pub(super) turned: FontTransform,
}
