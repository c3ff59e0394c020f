//! A scene as SVG, through plotters' SVG backend.

use std::error::Error;
use std::fmt::Write as _;

use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBAColor, RGBColor, ShapeStyle, TextStyle,
};

use super::font::FAMILY;
use super::scene::{Anchor, Ink, Place, Scene, Shape, Text};
use crate::{RecordError, Result};

/// plotters rounds coordinates to whole numbers; ten to a unit keep curves smooth.
const SCALE: f64 = 10.0;

/// plotters divides font sizes by this.
const PLOTTERS_FONT_DIVISOR: f64 = 1.24;

pub(super) fn paint(scene: &Scene, title: &str) -> Result<String> {
    let mut document = String::new();
    draw(scene, &mut document)
        .map_err(|error| RecordError::Drawing { figure: title.to_owned(), reason: error.to_string() })?;
    // The head says how large the figure is to be shown, in the scene's own units, and gives it a name.
    let body = document.split_once('\n').map_or("", |(_, body)| body);
    let (width, height) = scene.size;
    let mut svg = format!(
        "<svg width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n",
        width * SCALE,
        height * SCALE
    );
    let escaped = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<title>{escaped}</title>");
    svg.push_str(body);
    Ok(svg)
}

fn draw(scene: &Scene, document: &mut String) -> std::result::Result<(), Box<dyn Error + Send + Sync>> {
    let size = ((scene.size.0 * SCALE) as u32, (scene.size.1 * SCALE) as u32);
    let mut backend = SVGBackend::with_string(document, size);
    backend.draw_rect((0, 0), (size.0 as i32, size.1 as i32), &RGBColor(255, 255, 255).filled(), true)?;
    for shape in &scene.shapes {
        match shape {
            Shape::Line { path, width, ink } => {
                let style: ShapeStyle = colour(*ink).stroke_width((width * SCALE).round().max(1.0) as u32);
                backend.draw_path(path.iter().map(|&p| scaled(p)), &style)?;
            }
            Shape::Area { path, ink } => {
                backend.fill_polygon(path.iter().map(|&p| scaled(p)), &colour(*ink).filled())?;
            }
            Shape::Region { rings, ink } => {
                backend.fill_polygon(bridged(rings).into_iter().map(scaled), &colour(*ink).filled())?;
            }
            Shape::Disc { at, radius, ink } => {
                let radius = (radius * SCALE).round() as u32;
                backend.draw_circle(scaled(*at), radius, &colour(*ink).filled(), true)?;
            }
            Shape::Text(text) => backend.draw_text(&text.words, &text_style(text), scaled(text.at))?,
        }
    }
    backend.present()?;
    Ok(())
}

/// One closed path around all rings, since plotters' SVG knows polygons only: from the first ring's start to each other one and back the same
/// way, so that the bridges enclose nothing. Rings and holes turn in opposite ways, so that either rule of filling gives the same.
fn bridged(rings: &[Vec<Place>]) -> Vec<Place> {
    let Some(start) = rings.first().and_then(|ring| ring.first()).copied() else { return Vec::new() };
    let around = |ring: &Vec<Place>| {
        ring.iter().copied().chain(ring.first().copied()).chain([start]).collect::<Vec<_>>()
    };
    rings.iter().flat_map(around).collect()
}

fn scaled((x, y): Place) -> (i32, i32) {
    ((x * SCALE).round() as i32, (y * SCALE).round() as i32)
}

fn colour(ink: Ink) -> RGBAColor {
    let (r, g, b) = ink.rgb;
    RGBColor(r, g, b).mix(ink.alpha)
}

fn text_style(text: &Text) -> TextStyle<'static> {
    let style = if text.bold { FontStyle::Bold } else { FontStyle::Normal };
    let size = text.size * SCALE * PLOTTERS_FONT_DIVISOR;
    let mut font = FontDesc::new(FontFamily::Name(FAMILY), size, style);
    if text.upwards {
        font = font.transform(FontTransform::Rotate270);
    }
    // Anchors let the reader's own font be centred, whatever its widths.
    let horizontal = match text.anchor {
        Anchor::Start => HPos::Left,
        Anchor::Middle => HPos::Center,
        Anchor::End => HPos::Right,
    };
    let mut style = TextStyle::from(font).pos(Pos::new(horizontal, VPos::Center));
    style.color = colour(text.ink).to_backend_color();
    style
}
