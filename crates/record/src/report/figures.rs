//! A run's figures, inside the page.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Above this many bytes a figure's SVG gives way to its PNG.
const LARGE_SVG: u64 = 1_000_000;

/// All figures of a page together, in bytes: base64 makes four of three, and a page stays below 15 MB.
const ALL_FIGURES: u64 = 10_500_000;

/// How many bytes a page has for figures.
pub(super) struct Budget {
    svg_limit: u64,
    left: u64,
}

/// One figure of a run.
#[derive(Debug, Default)]
pub(super) struct Figure {
    /// Its name, without an extension.
    pub(super) name: String,
    /// What it shows.
    pub(super) what: String,
    /// What stands above it, for readers who do not see it.
    pub(super) title: String,
    /// Where its files lie, for the page's links.
    pub(super) svg_link: Option<String>,
    pub(super) png_link: Option<String>,
    /// The image itself, as a data URI, which shares no names with other figures and runs nothing.
    pub(super) image: Option<String>,
    /// The width to show a PNG at, which has more pixels than that; an SVG knows its own.
    pub(super) width: Option<u32>,
    /// Why there is no image.
    pub(super) problem: Option<String>,
    svg: Option<(PathBuf, u64)>,
    png: Option<(PathBuf, u64)>,
}

impl Figure {
    /// The figure `<folder>/<name>.svg` and `.png`, of which either may be missing. `link` says where a file lies.
    pub(super) fn find(folder: &Path, name: &str, what: Option<&str>, link: impl Fn(&str) -> String) -> Self {
        let file = |extension: &str| {
            let path = folder.join(format!("{name}.{extension}"));
            let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
            Some((path, size))
        };
        let (svg, png) = (file("svg"), file("png"));
        Self {
            name: name.to_owned(),
            what: what.unwrap_or(name).to_owned(),
            svg_link: svg.is_some().then(|| link(&format!("{name}.svg"))),
            png_link: png.is_some().then(|| link(&format!("{name}.png"))),
            svg,
            png,
            ..Self::default()
        }
    }

    /// What a reader hears who does not see the figure.
    pub(super) fn alt(&self) -> String {
        if self.title.is_empty() { self.what.clone() } else { format!("{}: {}", self.title, self.what) }
    }

    /// Whether the SVG is shown, and how many bytes what is shown has.
    fn choice(&self, svg_limit: u64) -> Option<(bool, u64)> {
        match (&self.svg, &self.png) {
            (Some((_, svg)), Some((_, png))) if *svg > svg_limit && png < svg => Some((false, *png)),
            (Some((_, svg)), _) => Some((true, *svg)),
            (None, Some((_, png))) => Some((false, *png)),
            (None, None) => None,
        }
    }

    /// Takes the image into the page, or says why not.
    pub(super) fn embed(&mut self, budget: &mut Budget) {
        let Some((as_svg, size)) = self.choice(budget.svg_limit) else {
            self.problem = Some("neither its SVG nor its PNG is in the run's folder".into());
            return;
        };
        if size > budget.left {
            self.problem = Some("left out, so that the page does not grow too large".into());
            return;
        }
        budget.left -= size;
        // The words above a figure are in its SVG only.
        let svg = self.svg.as_ref().and_then(|(path, _)| fs::read_to_string(path).ok());
        let svg = svg.filter(|text| text.trim_end().ends_with("</svg>"));
        self.title = svg.as_deref().and_then(title).unwrap_or_default();
        if as_svg && let Some(svg) = svg {
            self.image = Some(format!("data:image/svg+xml;base64,{}", STANDARD.encode(svg)));
            return;
        }
        match self.png.as_ref().map(|(path, _)| fs::read(path)) {
            Some(Ok(png)) => {
                self.width = png.get(16..20).and_then(|w| Some(u32::from_be_bytes(w.try_into().ok()?) / 2));
                self.image = Some(format!("data:image/png;base64,{}", STANDARD.encode(png)));
            }
            Some(Err(error)) => self.problem = Some(format!("its PNG cannot be read: {error}")),
            None => self.problem = Some("its SVG is not whole, and there is no PNG".into()),
        }
    }
}

impl Budget {
    /// Room for these figures: with the sharp SVGs if they fit, else with the smaller PNGs of ever more of them.
    pub(super) fn over(figures: &[&Figure]) -> Self {
        let all = |limit: u64| -> u64 {
            figures.iter().filter_map(|figure| figure.choice(limit)).map(|(_, size)| size).sum()
        };
        let limits = [LARGE_SVG, LARGE_SVG / 4, LARGE_SVG / 16, 0];
        let svg_limit = limits.into_iter().find(|limit| all(*limit) <= ALL_FIGURES).unwrap_or(0);
        Self { svg_limit, left: ALL_FIGURES }
    }
}

/// The name that an SVG of ours gives itself.
fn title(svg: &str) -> Option<String> {
    let (_, rest) = svg.split_once("<title>")?;
    let (title, _) = rest.split_once("</title>")?;
    Some(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}
