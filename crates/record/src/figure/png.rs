//! A scene as PNG, through plotters' bitmap backend.

use std::error::Error;

use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::style::{Color, RGBAColor, RGBColor};

use super::font;
use super::scene::{Anchor, Ink, Place, Scene, Shape, Text};
use crate::{RecordError, Result};

/// Pixels of the image to one unit of the scene.
const SCALE: usize = 2;

/// Drawn pixels to one pixel of the image, in each direction; averaging them smooths every edge.
const OVERSAMPLING: usize = 2;

type Failure = Box<dyn Error + Send + Sync>;

pub(super) fn paint(scene: &Scene, title: &str) -> Result<Vec<u8>> {
    let (width, height) = (scene.size.0 as usize * SCALE, scene.size.1 as usize * SCALE);
    let (wide, high) = (width * OVERSAMPLING, height * OVERSAMPLING);
    let mut pixels = vec![255_u8; wide * high * 3];
    draw(scene, &mut pixels, (wide as u32, high as u32))
        .and_then(|()| encode(&average(&pixels, width, height), width as u32, height as u32))
        .map_err(|error| RecordError::Drawing { figure: title.to_owned(), reason: error.to_string() })
}

fn draw(scene: &Scene, pixels: &mut [u8], size: (u32, u32)) -> std::result::Result<(), Failure> {
    let mut backend = BitMapBackend::with_buffer(pixels, size);
    for shape in &scene.shapes {
        match shape {
            Shape::Line { path, width, ink } => draw_line(&mut backend, path, *width, *ink)?,
            Shape::Area { path, ink } => {
                backend.fill_polygon(path.iter().map(|&p| scaled(p)), &colour(*ink).filled())?;
            }
            Shape::Region { rings, ink } => fill_region(&mut backend, rings, *ink)?,
            Shape::Disc { at, radius, ink } => {
                let radius = (radius * factor()).round() as u32;
                backend.draw_circle(scaled(*at), radius, &colour(*ink).filled(), true)?;
            }
            Shape::Text(text) => draw_text(&mut backend, text)?,
        }
    }
    backend.present()?;
    Ok(())
}

/// Row by row, between every odd and the next even crossing: plotters' own polygons are torn where rings are many.
fn fill_region(
    backend: &mut BitMapBackend,
    rings: &[Vec<Place>],
    ink: Ink,
) -> std::result::Result<(), Failure> {
    let style = colour(ink);
    let mut edges: Vec<(Place, Place)> = Vec::new();
    for ring in rings {
        for (&(x0, y0), &(x1, y1)) in ring.iter().zip(ring.iter().cycle().skip(1)) {
            let (from, to) = ((x0 * factor(), y0 * factor()), (x1 * factor(), y1 * factor()));
            edges.push(if from.1 <= to.1 { (from, to) } else { (to, from) });
        }
    }
    edges.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
    let low = edges.iter().map(|edge| edge.0.1).fold(f64::INFINITY, f64::min);
    let high = edges.iter().map(|edge| edge.1.1).fold(f64::NEG_INFINITY, f64::max);
    let (mut next, mut active): (usize, Vec<(Place, Place)>) = (0, Vec::new());
    for row in low.floor() as i32..=high.ceil() as i32 {
        let middle = f64::from(row) + 0.5;
        while next < edges.len() && edges[next].0.1 <= middle {
            active.push(edges[next]);
            next += 1;
        }
        active.retain(|edge| edge.1.1 > middle);
        let crossing = |&((x0, y0), (x1, y1)): &(Place, Place)| x0 + (x1 - x0) * (middle - y0) / (y1 - y0);
        let mut crossings: Vec<f64> = active.iter().map(crossing).collect();
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.chunks_exact(2) {
            // The pixels whose middles lie between.
            let (from, to) = ((pair[0] - 0.5).ceil() as i32, (pair[1] - 0.5).ceil() as i32 - 1);
            if from <= to {
                backend.draw_line((from, row), (to, row), &style)?;
            }
        }
    }
    Ok(())
}

/// Each segment as a rectangle with round joints: plotters' own wide lines fray at sharp turns.
fn draw_line(
    backend: &mut BitMapBackend,
    path: &[Place],
    width: f64,
    ink: Ink,
) -> std::result::Result<(), Failure> {
    let half = width / 2.0;
    let style = colour(ink).filled();
    for pair in path.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let (from, to) = (scaled(pair[0]), scaled(pair[1]));
        let length = (x1 - x0).hypot(y1 - y0);
        if length == 0.0 {
            continue;
        }
        // Upright and level lines are exact rectangles of whole pixels, so that grids are even.
        if from.0 == to.0 || from.1 == to.1 {
            let (left, top) = (from.0.min(to.0), from.1.min(to.1));
            let (right, bottom) = (from.0.max(to.0), from.1.max(to.1));
            let thick = (width * factor()).round().max(1.0) as i32;
            let before = thick / 2;
            let (upper, lower) = if from.1 == to.1 {
                ((left, top - before), (right - 1, top - before + thick - 1))
            } else {
                ((left - before, top), (left - before + thick - 1, bottom - 1))
            };
            backend.draw_rect(upper, lower, &style, true)?;
            continue;
        }
        let (nx, ny) = (-(y1 - y0) / length * half, (x1 - x0) / length * half);
        let corners = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)];
        backend.fill_polygon(corners.map(scaled), &style)?;
    }
    // Rounded down: a joint must not bulge out of its line.
    let radius = (half * factor()) as u32;
    if radius > 1 && path.len() > 2 {
        for &joint in &path[1..path.len() - 1] {
            backend.draw_circle(scaled(joint), radius, &style, true)?;
        }
    }
    Ok(())
}

/// Glyph by glyph from the embedded font: plotters' own text drops the space before each glyph.
fn draw_text(backend: &mut BitMapBackend, text: &Text) -> std::result::Result<(), Failure> {
    let (x, y) = scaled(text.at);
    let before = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => text.width() / 2.0,
        Anchor::End => text.width(),
    };
    let shift = (before * factor()).round() as i32;
    let mut result = Ok(());
    font::rasterise(&text.words, text.size * factor(), text.bold, |dx, dy, coverage| {
        let dx = dx - shift;
        let at = if text.upwards { (x + dy, y - dx) } else { (x + dx, y + dy) };
        let ink = colour(Ink { alpha: text.ink.alpha * f64::from(coverage), ..text.ink });
        if result.is_ok() {
            result = backend.draw_pixel(at, ink.to_backend_color());
        }
    });
    result.map_err(Into::into)
}

fn average(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let wide = width * OVERSAMPLING * 3;
    let count = (OVERSAMPLING * OVERSAMPLING) as u32;
    let mut image = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let mut sum = count / 2;
                for dy in 0..OVERSAMPLING {
                    let start = (y * OVERSAMPLING + dy) * wide + x * OVERSAMPLING * 3 + channel;
                    sum += (0..OVERSAMPLING).map(|dx| u32::from(pixels[start + dx * 3])).sum::<u32>();
                }
                image.push((sum / count) as u8);
            }
        }
    }
    image
}

/// A PNG of rows of RGB.
pub(crate) fn encode(image: &[u8], width: u32, height: u32) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Default);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image)?;
    writer.finish()?;
    Ok(bytes)
}

fn factor() -> f64 {
    (SCALE * OVERSAMPLING) as f64
}

fn scaled((x, y): Place) -> (i32, i32) {
    ((x * factor()).round() as i32, (y * factor()).round() as i32)
}

fn colour(ink: Ink) -> RGBAColor {
    let (r, g, b) = ink.rgb;
    RGBColor(r, g, b).mix(ink.alpha)
}
