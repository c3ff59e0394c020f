//! Figures: described once, drawn as SVG and as PNG with the same layout.
//!
//! The way of a figure: [`Figure`] (what to show) → `layout` (where everything goes) → `Scene` (lines, areas, text
//! at coordinates) → `svg` and `png`, which hand the scene to plotters' backends.

mod axis;
mod clip;
mod describe;
mod edge;
mod field;
pub(crate) mod font;
mod label;
mod layout;
mod legend;
mod panel;
mod png;
mod scene;
mod surface;
mod svg;

pub(crate) use png::encode as encode_png;

pub use describe::{
    Axis, AxisSide, Colour, Dash, Field, FieldLook, Figure, Level, Marker, Panel, Scale, Series, SeriesShape,
    Style, VerticalMark, ecdf,
};

use std::path::{Path, PathBuf};

use crate::{Result, write_atomically};

impl Figure {
    /// The figure as an SVG document.
    ///
    /// # Errors
    /// [`RecordError::AxisRange`](crate::RecordError::AxisRange) for an impossible axis range,
    /// [`RecordError::Drawing`](crate::RecordError::Drawing) if plotters fails.
    pub fn to_svg(&self) -> Result<String> {
        svg::paint(&layout::scene(self)?, &self.title)
    }

    /// The figure as a PNG image of twice the SVG's size.
    ///
    /// # Errors
    /// As [`Figure::to_svg`].
    pub fn to_png(&self) -> Result<Vec<u8>> {
        png::paint(&layout::scene(self)?, &self.title)
    }

    /// Writes `<folder>/<name>.svg` and `<folder>/<name>.png` and returns their paths.
    ///
    /// # Errors
    /// As [`Figure::to_svg`] and [`write_atomically`].
    pub fn write(&self, folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
        let svg = folder.join(format!("{name}.svg"));
        let png = folder.join(format!("{name}.png"));
        write_atomically(&svg, self.to_svg()?.as_bytes())?;
        write_atomically(&png, &self.to_png()?)?;
        Ok(vec![svg, png])
    }
}

#[cfg(test)]
mod tests;
