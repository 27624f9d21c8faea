//! A panel: axes around a place where data is drawn; and what stands above panels.

use std::cell::RefCell;

use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::{Color, FontTransform, RGBColor, ShapeStyle, TextStyle};
use plotters_backend::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::canvas::{Area, Canvas, Painted};
use super::style::{self, FAINT, INK, LABEL, LINE, MESH, TICK, TITLE};

/// Room between things, in pixels.
pub(super) const GAP: i32 = 14;
/// Radius of dots that notes do not cover.
const LARGE: u32 = 8;
/// Length of a tick.
const TICK_MARK: i32 = 8;

/// An entry of a legend.
pub(super) struct Key {
    pub(super) text: String,
    pub(super) colour: RGBColor,
    pub(super) mark: Mark,
}

/// How data is drawn that a legend names.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Line,
    Dot,
    Block,
}

impl Key {
    pub(super) fn new(text: impl Into<String>, colour: RGBColor, mark: Mark) -> Self {
        Self { text: text.into(), colour, mark }
    }
}

fn filled(colour: RGBColor) -> ShapeStyle {
    colour.filled()
}

fn anchored(style: TextStyle<'static>, h: HPos, v: VPos) -> TextStyle<'static> {
    style.pos(Pos::new(h, v))
}

fn width(area: &Area<'_>, text: &str, style: &TextStyle<'_>) -> Painted<i32> {
    Ok(area.estimate_text_size(text, style)?.0 as i32)
}

/// Writes a figure's title, what explains it, and a legend that is wrapped to the width; returns what is below.
pub(super) fn header<'a>(area: &Area<'a>, title: &str, about: &str, keys: &[Key]) -> Painted<Area<'a>> {
    const LEFT: i32 = 2 * GAP;
    const KEY: i32 = 44;
    let (right, mut y) = (area.dim_in_pixel().0 as i32 - LEFT, LEFT);
    area.draw(&Text::new(title.to_owned(), (LEFT, y), style::bold(TITLE, INK)))?;
    y += 46;
    let small = style::text(LABEL, FAINT);
    if !about.is_empty() {
        for line in wrapped(about, right - LEFT, |text| width(area, text, &small))? {
            area.draw(&Text::new(line, (LEFT, y), small.clone()))?;
            y += LINE;
        }
    }
    let label = anchored(style::text(LABEL, INK), HPos::Left, VPos::Center);
    let mut x = LEFT;
    for (i, key) in keys.iter().enumerate() {
        let length = KEY + GAP + width(area, &key.text, &label)?;
        if i == 0 || x + length > right {
            (x, y) = (LEFT, y + if i == 0 { LINE / 2 + 4 } else { LINE });
        }
        let style = key.colour.stroke_width(6);
        match key.mark {
            Mark::Line => area.draw(&PathElement::new([(x, y), (x + KEY, y)], style))?,
            Mark::Dot => area.draw(&Circle::new((x + KEY / 2, y), 9, filled(key.colour)))?,
            Mark::Block => {
                area.draw(&Rectangle::new([(x + 8, y - 10), (x + KEY, y + 10)], filled(key.colour)))?
            }
        }
        area.draw(&Text::new(key.text.clone(), (x + KEY + GAP, y), label.clone()))?;
        x += length + 3 * GAP;
    }
    if !keys.is_empty() {
        y += LINE / 2 + GAP;
    }
    Ok(area.margin(y, GAP, GAP, 2 * GAP))
}

/// Breaks a text between words so that no line is wider than `most`.
fn wrapped(text: &str, most: i32, width: impl Fn(&str) -> Painted<i32>) -> Painted<Vec<String>> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"))? <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    Ok(lines)
}

/// Divides an area into `count` panels of equal size, `columns` in a row.
pub(super) fn grid<'a>(area: &Area<'a>, count: usize, columns: usize) -> Vec<Area<'a>> {
    area.split_evenly((count.div_ceil(columns), columns)).into_iter().take(count).collect()
}

/// How many columns make panels that are wider than high, for `count` of them.
pub(super) fn columns(count: usize) -> usize {
    match count {
        0..=1 => 1,
        2..=4 => 2,
        5..=9 => 3,
        _ => 4,
    }
}

/// A place to draw data in.
pub(super) struct Panel<'a> {
    plot: DrawingArea<Canvas<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    x: Axis,
    y: Axis,
    /// Where notes and large dots are.
    taken: RefCell<Vec<Box>>,
}

/// Left, upper, right and lower edge in pixels.
type Box = (i32, i32, i32, i32);

fn overlap(a: &Box, b: &Box) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

impl<'a> Panel<'a> {
    /// Draws axes as wide as their labels need; `title` may be empty.
    pub(super) fn new(area: &Area<'a>, title: &str, x: Axis, y: Axis) -> Painted<Self> {
        let tick = style::text(TICK, INK);
        let widest = |axis: &Axis| -> Painted<i32> {
            let widths = axis.ticks.iter().map(|(_, label)| width(area, label, &tick));
            Ok(widths.collect::<Painted<Vec<_>>>()?.into_iter().max().unwrap_or(0))
        };
        let line = |axis: &Axis| if axis.title.is_empty() { 0 } else { LINE + GAP / 2 };
        let left = line(&y) + widest(&y)? + 2 * TICK_MARK + GAP;
        let labels = if x.upright { widest(&x)? } else { TICK as i32 + 6 };
        let below = line(&x) + labels + 2 * TICK_MARK + GAP / 2;
        let above = if title.is_empty() { GAP } else { LINE + GAP };
        let inner = area.margin(above, below, left, 2 * GAP);
        let (across, down) = inner.get_pixel_range();
        let spec = Cartesian2d::new(x.low..x.high, y.low..y.high, (across, down.end..down.start));
        let panel = Self { plot: inner.apply_coord_spec(spec), x, y, taken: RefCell::default() };
        panel.draw_axes(area, title, left)?;
        Ok(panel)
    }

    fn draw_axes(&self, area: &Area<'a>, title: &str, left: i32) -> Painted {
        let (across, down) = self.plot.get_pixel_range();
        let (origin_x, origin_y) = area.get_base_pixel();
        let (l, r) = (across.start - origin_x, across.end - origin_x);
        let (t, b) = (down.start - origin_y, down.end - origin_y);
        let place = |x: f64, y: f64| {
            let (x, y) = self.plot.map_coordinate(&(x, y));
            (x - origin_x, y - origin_y)
        };
        let mesh = MESH.stroke_width(2);
        let ink = FAINT.stroke_width(2);
        let tick = style::text(TICK, INK);
        let label = style::text(LABEL, INK);
        for (at, text) in &self.x.ticks {
            let (x, _) = place(*at, self.y.low);
            if self.x.mesh {
                area.draw(&PathElement::new([(x, t), (x, b)], mesh))?;
            }
            area.draw(&PathElement::new([(x, b), (x, b + TICK_MARK)], ink))?;
            let style = if self.x.upright {
                anchored(tick.clone(), HPos::Right, VPos::Center).transform(FontTransform::Rotate270)
            } else {
                anchored(tick.clone(), HPos::Center, VPos::Top)
            };
            area.draw(&Text::new(text.clone(), (x, b + 2 * TICK_MARK), style))?;
        }
        for (at, text) in &self.y.ticks {
            let (_, y) = place(self.x.low, *at);
            if self.y.mesh {
                area.draw(&PathElement::new([(l, y), (r, y)], mesh))?;
            }
            area.draw(&PathElement::new([(l - TICK_MARK, y), (l, y)], ink))?;
            let style = anchored(tick.clone(), HPos::Right, VPos::Center);
            area.draw(&Text::new(text.clone(), (l - 2 * TICK_MARK, y), style))?;
        }
        area.draw(&PathElement::new([(l, t), (l, b), (r, b)], ink))?;
        let bottom = area.dim_in_pixel().1 as i32;
        if !self.x.title.is_empty() {
            let style = anchored(label.clone(), HPos::Center, VPos::Bottom);
            area.draw(&Text::new(self.x.title.clone(), ((l + r) / 2, bottom - GAP / 2), style))?;
        }
        if !self.y.title.is_empty() {
            let turned = anchored(label, HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
            area.draw(&Text::new(self.y.title.clone(), (l - left + GAP / 2, (t + b) / 2), turned))?;
        }
        if !title.is_empty() {
            let style = anchored(style::bold(LABEL, INK), HPos::Left, VPos::Top);
            area.draw(&Text::new(title.to_owned(), (l, GAP / 2), style))?;
        }
        Ok(())
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.at(x), self.y.at(y))
    }

    /// A line through points.
    pub(super) fn line(
        &self,
        points: impl IntoIterator<Item = (f64, f64)>,
        colour: RGBColor,
        width: u32,
    ) -> Painted {
        let points: Vec<_> = points.into_iter().map(|p| self.place(p)).collect();
        self.plot.draw(&PathElement::new(points, colour.stroke_width(width)))
    }

    /// A dot at each point.
    pub(super) fn dots(
        &self,
        points: impl IntoIterator<Item = (f64, f64)>,
        colour: RGBColor,
        radius: u32,
    ) -> Painted {
        for point in points {
            let place = self.place(point);
            self.plot.draw(&Circle::new(place, radius, filled(colour)))?;
            if radius >= LARGE {
                let ((x, y), r) = (self.plot.map_coordinate(&place), radius as i32);
                self.taken.borrow_mut().push((x - r, y - r, x + r, y + r));
            }
        }
        Ok(())
    }

    /// A filled rectangle between two corners; a line where it is narrower than a pixel.
    pub(super) fn block(&self, a: (f64, f64), b: (f64, f64), colour: RGBColor) -> Painted {
        if self.pixels_across(a.0, b.0) == 0 {
            return self.line([a, (a.0, b.1)], colour, 2);
        }
        self.plot.draw(&Rectangle::new([self.place(a), self.place(b)], filled(colour)))
    }

    /// A text beside a point, where it covers no other and no large dot; none where there is no such place.
    pub(super) fn note(&self, at: (f64, f64), text: &str, colour: RGBColor) -> Painted {
        const APART: i32 = 22;
        let (x, y) = self.plot.map_coordinate(&self.place(at));
        let style = style::text(TICK, colour);
        let (width, height) = self.plot.estimate_text_size(text, &style)?;
        let (width, half) = (width as i32, height as i32 / 2 + 2);
        let (across, down) = self.plot.get_pixel_range();
        let inside =
            |b: &Box| b.0 >= across.start && b.2 <= across.end && b.1 >= down.start && b.3 <= down.end;
        let free = |b: &Box| !self.taken.borrow().iter().any(|other| overlap(b, other));
        let beside = |left: i32, middle: i32| (left, middle - half, left + width, middle + half);
        let places =
            [(x + APART, y), (x - APART - width, y), (x - width / 2, y - 30), (x - width / 2, y + 30)];
        let found =
            places.into_iter().map(|(left, middle)| beside(left, middle)).find(|b| inside(b) && free(b));
        let Some(found) = found else { return Ok(()) };
        self.taken.borrow_mut().push(found);
        let (origin_x, origin_y) = self.plot.get_base_pixel();
        let place = (found.0 - origin_x, (found.1 + found.3) / 2 - origin_y);
        let style = anchored(style, HPos::Left, VPos::Center);
        self.plot.strip_coord_spec().draw(&Text::new(text.to_owned(), place, style))
    }

    /// Pixels between two places on the x axis.
    pub(super) fn pixels_across(&self, a: f64, b: f64) -> i32 {
        let pixel = |x: f64| self.plot.map_coordinate(&(self.x.at(x), self.y.low)).0;
        (pixel(b) - pixel(a)).abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_that_touch_do_not_overlap() {
        assert!(overlap(&(0, 0, 10, 10), &(9, 9, 20, 20)));
        assert!(!overlap(&(0, 0, 10, 10), &(10, 0, 20, 10)));
        assert!(!overlap(&(0, 0, 10, 10), &(0, 11, 10, 20)));
    }

    #[test]
    fn texts_are_broken_between_words() {
        let of = |text: &str, most| wrapped(text, most, |t| Ok(t.chars().count() as i32)).unwrap();
        assert_eq!(of("one two three", 7), ["one two", "three"]);
        assert_eq!(of("one two three", 100), ["one two three"]);
        assert_eq!(of("unbreakable", 3), ["unbreakable"]);
    }

    #[test]
    fn panels_find_a_column() {
        assert_eq!([1, 2, 4, 5, 9, 12].map(columns), [1, 2, 2, 3, 3, 4]);
    }
}
