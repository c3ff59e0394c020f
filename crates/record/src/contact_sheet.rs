//! Many figures on one image, to be looked at together.

use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::figure::{encode_png, font};
use crate::{RecordError, Result, write_atomically};

/// Width of a column, and its distance from the next, in pixels.
const COLUMN: u32 = 560;
const GAP: u32 = 24;

/// The caption's height with its distance from the figure, and its font size.
const CAPTION: u32 = 32;
const FONT_SIZE: f64 = 17.;

const WHITE: Rgb<u8> = Rgb([255; 3]);
const LINE: Rgb<u8> = Rgb([221, 226, 230]);

/// Writes the PNGs `figures`, each with its caption above it, as one PNG: row by row, `columns` in a row, all scaled to
/// one width. A figure that cannot be read leaves its place empty, and its caption says so.
///
/// # Errors
/// [`RecordError::Page`] without a figure or a column; as [`write_atomically`].
pub fn contact_sheet(figures: &[(String, PathBuf)], columns: u32, target: &Path) -> Result<()> {
    let fail = |reason: String| RecordError::Page { path: target.to_path_buf(), reason };
    if figures.is_empty() {
        return Err(fail("there is no figure to show".into()));
    }
    if columns == 0 {
        return Err(fail("a sheet has at least one column".into()));
    }
    let columns = columns.min(figures.len() as u32);
    let cells: Vec<(String, Option<RgbImage>)> = figures
        .iter()
        .map(|(caption, path)| match image::open(path) {
            Ok(figure) => (caption.clone(), Some(scaled(&figure.into_rgb8()))),
            Err(_) => (format!("{caption}: cannot be read"), None),
        })
        .collect();
    let heights: Vec<u32> = cells
        .chunks(columns as usize)
        .map(|row| {
            row.iter().filter_map(|(_, image)| image.as_ref().map(RgbImage::height)).max().unwrap_or(0)
        })
        .collect();
    let width = GAP + columns * (COLUMN + GAP);
    let height = GAP + heights.iter().map(|height| CAPTION + height + GAP).sum::<u32>();
    let mut sheet = RgbImage::from_pixel(width, height, WHITE);
    let mut top = GAP;
    for (row, height) in cells.chunks(columns as usize).zip(heights) {
        for (column, (caption, figure)) in row.iter().enumerate() {
            let left = GAP + column as u32 * (COLUMN + GAP);
            write_caption(&mut sheet, caption, left, top + CAPTION / 2);
            if let Some(figure) = figure {
                imageops::replace(&mut sheet, figure, left.into(), (top + CAPTION).into());
                frame(&mut sheet, left, top + CAPTION, figure.height());
            }
        }
        top += CAPTION + height + GAP;
    }
    let bytes = encode_png(sheet.as_raw(), width, height).map_err(|error| fail(error.to_string()))?;
    write_atomically(target, &bytes)
}

/// The figure at the column's width.
fn scaled(figure: &RgbImage) -> RgbImage {
    let height = f64::from(figure.height()) * f64::from(COLUMN) / f64::from(figure.width().max(1));
    imageops::resize(figure, COLUMN, (height.round() as u32).max(1), FilterType::CatmullRom)
}

/// A thin line around a figure, whose ground is as white as the sheet's.
fn frame(sheet: &mut RgbImage, left: u32, top: u32, height: u32) {
    let (right, bottom) = (left + COLUMN - 1, top + height - 1);
    for x in left..=right {
        sheet.put_pixel(x, top, LINE);
        sheet.put_pixel(x, bottom, LINE);
    }
    for y in top..=bottom {
        sheet.put_pixel(left, y, LINE);
        sheet.put_pixel(right, y, LINE);
    }
}

/// The caption from `left` on, centred on `middle`, cut where the column ends.
fn write_caption(sheet: &mut RgbImage, caption: &str, left: u32, middle: u32) {
    let mut words = caption.to_owned();
    while font::width(&words, FONT_SIZE, true) > f64::from(COLUMN) {
        words.pop();
        words.pop();
        words.push('…');
    }
    font::rasterise(&words, FONT_SIZE, true, |x, y, coverage| {
        let at = (i64::from(left) + i64::from(x), i64::from(middle) + i64::from(y));
        let (Ok(x), Ok(y)) = (u32::try_from(at.0), u32::try_from(at.1)) else { return };
        if let Some(pixel) = sheet.get_pixel_mut_checked(x, y) {
            let ink = |ground: u8| (f32::from(ground) * (1. - 0.85 * coverage)) as u8;
            *pixel = Rgb(pixel.0.map(ink));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_in_rows_under_their_captions() {
        let folder = tempfile::tempdir().unwrap();
        let png = |name: &str, width: u32, height: u32, colour: [u8; 3]| {
            let path = folder.path().join(name);
            RgbImage::from_pixel(width, height, Rgb(colour)).save(&path).unwrap();
            (name.to_owned(), path)
        };
        let figures = [
            png("red.png", 2 * COLUMN, 800, [255, 0, 0]),
            ("gone.png".to_owned(), folder.path().join("gone.png")),
            png(&format!("{}.png", "blue".repeat(40)), COLUMN, 100, [0, 0, 255]),
        ];
        let target = folder.path().join("sheet.png");
        contact_sheet(&figures, 2, &target).unwrap();
        let sheet = image::open(&target).unwrap().into_rgb8();
        assert_eq!(sheet.width(), 2 * COLUMN + 3 * GAP);
        assert_eq!(sheet.height(), GAP + (CAPTION + 400 + GAP) + (CAPTION + 100 + GAP));
        let middle = |row: u32, column: u32| *sheet.get_pixel(GAP + 200 + column * (COLUMN + GAP), row);
        let first = GAP + CAPTION + 200;
        assert_eq!(middle(first, 0), Rgb([255, 0, 0]));
        assert_eq!(middle(first, 1), WHITE);
        assert_eq!(middle(first + 200 + GAP + CAPTION + 50, 0), Rgb([0, 0, 255]));
        let dark = |left: u32, top: u32| {
            let dark = |x, y| sheet.get_pixel(x, y).0[0] < 100;
            (left..left + COLUMN).any(|x| (top..top + CAPTION).any(|y| dark(x, y)))
        };
        assert!(dark(GAP, GAP) && dark(2 * GAP + COLUMN, GAP) && dark(GAP, GAP + CAPTION + 400 + GAP));
        // A caption that is too long stays in its column.
        assert!(!dark(2 * GAP + COLUMN, GAP + CAPTION + 400 + GAP));
    }

    #[test]
    fn an_empty_sheet_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("sheet.png");
        assert!(contact_sheet(&[], 2, &target).unwrap_err().to_string().contains("no figure"));
        let figures = [(String::new(), target.clone())];
        assert!(contact_sheet(&figures, 0, &target).unwrap_err().to_string().contains("column"));
    }
}
