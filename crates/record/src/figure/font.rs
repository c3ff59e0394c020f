//! The embedded font: text is measured and, in PNG, drawn with it, so that figures need no font of the system.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, Point};

/// Font family of the SVG: the embedded one where the reader has it, Verdana has the same widths.
pub(super) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// Height of the letter x in the embedded font, in units of the font size.
const X_HEIGHT: f64 = 0.547;

static REGULAR: &[u8] = include_bytes!("../../fonts/DejaVuSans.ttf");
static BOLD: &[u8] = include_bytes!("../../fonts/DejaVuSans-Bold.ttf");

// A font that does not parse leaves figures without text; the tests parse both.
static FONTS: LazyLock<[Option<FontRef<'static>>; 2]> =
    LazyLock::new(|| [REGULAR, BOLD].map(|bytes| FontRef::try_from_slice(bytes).ok()));

fn font(bold: bool) -> Option<&'static FontRef<'static>> {
    FONTS[usize::from(bold)].as_ref()
}

/// Width of `text` at a font size of `size` (same unit).
pub(crate) fn width(text: &str, size: f64, bold: bool) -> f64 {
    let Some(font) = font(bold) else {
        return 0.6 * size * text.chars().count() as f64;
    };
    let units = f64::from(font.units_per_em().unwrap_or(2048.0));
    text.chars().map(|c| f64::from(font.h_advance_unscaled(font.glyph_id(c)))).sum::<f64>() * size / units
}

/// Draws `text` from x = 0 with its x-height centred on y = 0: `ink(x, y, coverage)` for every pixel touched.
pub(crate) fn rasterise(text: &str, size: f64, bold: bool, mut ink: impl FnMut(i32, i32, f32)) {
    let Some(font) = font(bold) else { return };
    let units = font.units_per_em().unwrap_or(2048.0);
    // ab_glyph scales by line height, the rest of the world by em.
    let scale = size as f32 * font.height_unscaled() / units;
    let baseline = (size * X_HEIGHT / 2.0) as f32;
    let mut x = 0.0_f32;
    for c in text.chars() {
        let id = font.glyph_id(c);
        let glyph = Glyph { id, scale: scale.into(), position: Point { x, y: baseline } };
        if let Some(outline) = font.outline_glyph(glyph) {
            let bounds = outline.px_bounds();
            outline.draw(|dx, dy, coverage| {
                ink(bounds.min.x as i32 + dx as i32, bounds.min.y as i32 + dy as i32, coverage);
            });
        }
        x += font.h_advance_unscaled(id) * size as f32 / units;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fonts_have_every_sign_a_figure_needs() {
        for bold in [false, true] {
            let font = font(bold).expect("the embedded font parses");
            for c in "aZ09αβηθλμσρ×−±·≥≤≠²³¹⁰⁴⁵⁶⁷⁸⁹⁻₁₂‖∞→√∑∂∇%°–—▲▼◇…".chars()
            {
                assert_ne!(font.glyph_id(c).0, 0, "{c} is missing");
            }
        }
    }

    #[test]
    fn width_is_by_character_not_by_byte() {
        assert!(width("αα", 12.0, false) < 1.2 * width("aa", 12.0, false));
        assert!(width("iiii", 12.0, false) < width("mmmm", 12.0, false));
        assert!((width("abc", 24.0, true) - 2.0 * width("abc", 12.0, true)).abs() < 1e-9);
    }
}
