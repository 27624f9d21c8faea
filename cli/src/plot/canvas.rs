//! Where plotters draws: on pixels or into an SVG document, from the same instructions.

use std::io;

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::style::WHITE;
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontStyle,
};
use taq_core::image::Image;
use tiny_skia::Pixmap;

use super::raster::{Line, Raster};
use super::text::{self, SIZE_PER_EM};

/// A part of a canvas, in pixels.
pub(super) type Area<'a> = DrawingArea<Canvas<'a>, Shift>;
/// What drawing returns.
pub(super) type Painted<T = ()> = Result<T, DrawingAreaErrorKind<io::Error>>;

/// One of the two targets.
pub(super) enum Canvas<'a> {
    Png(Raster<'a>),
    Svg(SVGBackend<'a>),
}

/// Draws on pixels.
pub(super) fn png(size: (u32, u32), paint: impl FnOnce(&Area<'_>) -> Painted) -> io::Result<Image> {
    let too_large = || io::Error::other(format!("an image of {} × {} pixels is too large", size.0, size.1));
    let mut pixels = Pixmap::new(size.0, size.1).ok_or_else(too_large)?;
    painted(Canvas::Png(Raster(&mut pixels)), paint)?;
    let values = pixels.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]);
    let values = values.map(|v| f32::from(v) / 255.0).collect();
    Image::new(size.1 as usize, size.0 as usize, values).map_err(io::Error::other)
}

/// Draws into an SVG document that is shown half as large as it is drawn.
pub(super) fn svg(size: (u32, u32), paint: impl FnOnce(&Area<'_>) -> Painted) -> io::Result<String> {
    let mut document = String::new();
    painted(Canvas::Svg(SVGBackend::with_string(&mut document, size)), paint)?;
    let (drawn, shown) = (dimensions(size), dimensions((size.0 / 2, size.1 / 2)));
    Ok(document.replacen(&drawn, &shown, 1))
}

fn dimensions((width, height): (u32, u32)) -> String {
    format!("width=\"{width}\" height=\"{height}\"")
}

fn painted(canvas: Canvas<'_>, paint: impl FnOnce(&Area<'_>) -> Painted) -> io::Result<()> {
    let area = canvas.into_drawing_area();
    let all = || {
        area.fill(&WHITE)?;
        paint(&area)?;
        area.present()
    };
    all().map_err(|e| io::Error::other(e.to_string()))
}

type Drawn<T = ()> = Result<T, DrawingErrorKind<io::Error>>;

fn is_bold(style: &impl BackendTextStyle) -> bool {
    matches!(style.style(), FontStyle::Bold)
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = io::Error;

    fn get_size(&self) -> (u32, u32) {
        match self {
            Self::Png(raster) => raster.size(),
            Self::Svg(svg) => svg.get_size(),
        }
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        match self {
            Self::Png(_) => Ok(()),
            Self::Svg(svg) => svg.present(),
        }
    }

    fn draw_pixel(&mut self, at: BackendCoord, colour: BackendColor) -> Drawn {
        match self {
            Self::Png(raster) => raster.block(at, (at.0 + 1, at.1 + 1), colour),
            Self::Svg(svg) => svg.draw_pixel(at, colour)?,
        }
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        match self {
            Self::Png(raster) => raster.line([from, to], style.stroke_width(), style.color()),
            Self::Svg(svg) => svg.draw_line(from, to, style)?,
        }
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        a: BackendCoord,
        b: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn {
        match self {
            Self::Png(raster) if fill => raster.block(a, b, style.color()),
            Self::Png(raster) => {
                let corners = [a, (b.0, a.1), b, (a.0, b.1), a];
                raster.line(corners, style.stroke_width(), style.color());
            }
            Self::Svg(svg) => svg.draw_rect(a, b, style, fill)?,
        }
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        match self {
            Self::Png(raster) => raster.line(path, style.stroke_width(), style.color()),
            Self::Svg(svg) => svg.draw_path(path, style)?,
        }
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        centre: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn {
        match self {
            Self::Png(raster) => {
                raster.circle(centre, radius, (!fill).then(|| style.stroke_width()), style.color());
            }
            Self::Svg(svg) => svg.draw_circle(centre, radius, style, fill)?,
        }
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        match self {
            Self::Png(raster) => raster.polygon(path, style.color()),
            Self::Svg(svg) => svg.fill_polygon(path, style)?,
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn {
        match self {
            Self::Png(raster) => {
                let line = Line {
                    text,
                    em: style.size() / SIZE_PER_EM,
                    bold: is_bold(style),
                    anchor: style.anchor(),
                    turned: style.transform(),
                };
                raster.text(&line, at, style.color()).map_err(DrawingErrorKind::DrawingError)
            }
            Self::Svg(svg) => svg.draw_text(text, style, at),
        }
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, style: &S) -> Drawn<(u32, u32)> {
        let em = style.size() / SIZE_PER_EM;
        let width = text::width(text, em, is_bold(style)).map_err(DrawingErrorKind::DrawingError)?;
        Ok((width.ceil() as u32, em.ceil() as u32))
    }
}
