//! What a figure shows, in the words of a paper: panels, axes, series, bands, marks.

/// A figure: a title, where its numbers come from, and panels in a grid.
///
/// ```
/// use flatland_record::{Axis, Colour, Figure, Panel, Series};
/// let panel = Panel::new("Batch size 64 → 1024", Axis::linear("α"), Axis::log10("loss (nats)"))
///     .with_right_axis(Axis::linear("accuracy (%)").with_range(0.0, 100.0))
///     .with(Series::line("train loss", Colour::Blue, vec![(-2.0, f64::INFINITY), (0.0, 1e-3), (2.0, 40.0)]))
///     .with(
///         Series::line("test accuracy", Colour::Vermillion, vec![(-2.0, 10.0), (0.0, 97.0), (2.0, 12.0)])
///             .dashed()
///             .on_right_axis()
///             .with_band(vec![(-2.0, 8.0, 12.0), (0.0, 96.0, 98.0), (2.0, 9.0, 15.0)]),
///     )
///     .with_mark(0.0, "θ₁")
///     .with_mark(1.0, "θ₂");
/// let figure = Figure::new("Between two minima", "digits · preset quick · seeds 0–4 · 10 models", vec![panel]);
/// assert!(figure.to_svg()?.contains("× not finite: 1 value"));
/// # Ok::<(), flatland_record::RecordError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What is to be seen.
    pub title: String,
    /// Where it comes from: data set, preset, seeds, number of models. Always drawn, small and grey.
    pub subtitle: String,
    /// The panels, row by row.
    pub panels: Vec<Panel>,
    /// Panels side by side; `None` chooses.
    pub columns: Option<usize>,
    /// What the bands show, as said in the legend.
    pub band_meaning: String,
    /// Width and height of one panel with its labels, in SVG units; `None` chooses.
    pub panel_size: Option<(f64, f64)>,
}

impl Figure {
    /// A figure whose bands are 95 % intervals of the mean, and which chooses its own layout.
    pub fn new(title: impl Into<String>, subtitle: impl Into<String>, panels: Vec<Panel>) -> Self {
        Self {
            title: title.into(),
            subtitle: subtitle.into(),
            panels,
            columns: None,
            band_meaning: "95 % interval of the mean".into(),
            panel_size: None,
        }
    }
}

/// One plot of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What sets this panel apart from the others; may be empty.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The left axis.
    pub y: Axis,
    /// The right axis.
    pub y2: Option<Axis>,
    /// The data.
    pub series: Vec<Series>,
    /// Places on the horizontal axis that have a name.
    pub marks: Vec<VerticalMark>,
}

impl Panel {
    /// A panel with a left axis only.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, y2: None, series: Vec::new(), marks: Vec::new() }
    }

    /// Adds a right axis.
    #[must_use]
    pub fn with_right_axis(mut self, axis: Axis) -> Self {
        self.y2 = Some(axis);
        self
    }

    /// Adds a series.
    #[must_use]
    pub fn with(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Adds a dotted vertical line at `x`, named above the frame.
    #[must_use]
    pub fn with_mark(mut self, x: f64, label: impl Into<String>) -> Self {
        self.marks.push(VerticalMark { x, label: label.into() });
        self
    }
}

/// How values become places on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally long.
    Linear,
    /// Equal ratios are equally long; only values above 0 have a place.
    Log10,
}

/// An axis: its quantity with unit, its scale and, if wanted, its range.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// The quantity, with its unit: `"test loss (nats)"`.
    pub label: String,
    /// Linear or logarithmic.
    pub scale: Scale,
    /// Lowest and highest value shown; `None` shows all finite values. Values outside are clipped, marked at the
    /// edge and counted below the panel.
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// A linear axis over all finite values.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear, range: None }
    }

    /// A logarithmic axis over all finite values above 0.
    pub fn log10(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Log10, range: None }
    }

    /// Shows `low` to `high` only.
    #[must_use]
    pub fn with_range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }
}

/// The vertical axis that a series belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisSide {
    /// [`Panel::y`].
    Left,
    /// [`Panel::y2`]; without one, the left axis is used.
    Right,
}

/// Colours that stay apart for colour-blind readers: Okabe and Ito's palette, without its pale yellow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Strong blue.
    Blue,
    /// Orange-red.
    Vermillion,
    /// Bluish green.
    Green,
    /// Reddish purple.
    Purple,
    /// Orange.
    Orange,
    /// Light blue.
    Sky,
    /// Near-black.
    Black,
    /// Grey, for references and baselines.
    Grey,
}

impl Colour {
    /// The colours in the order in which to use them.
    pub const ALL: [Self; 7] =
        [Self::Blue, Self::Vermillion, Self::Green, Self::Purple, Self::Orange, Self::Sky, Self::Black];

    /// The colour of the `index`-th of many series; after seven they come round again, so vary the dashes.
    pub fn nth(index: usize) -> Self {
        Self::ALL[index % Self::ALL.len()]
    }

    pub(crate) fn rgb(self) -> (u8, u8, u8) {
        match self {
            Self::Blue => (0, 114, 178),
            Self::Vermillion => (213, 94, 0),
            Self::Green => (0, 158, 115),
            Self::Purple => (204, 121, 167),
            Self::Orange => (230, 159, 0),
            Self::Sky => (86, 180, 233),
            Self::Black => (34, 34, 34),
            Self::Grey => (128, 128, 128),
        }
    }
}

/// The dashes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dash {
    /// Unbroken.
    Solid,
    /// Long strokes.
    Dashed,
    /// Dots.
    Dotted,
}

/// Whether a series is drawn as a line, as points or as both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesShape {
    /// Straight lines from point to point, in the order given.
    Line,
    /// A dot a point.
    Points,
    /// Both.
    LineAndPoints,
}

/// How a series looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Its colour.
    pub colour: Colour,
    /// The dashes of its line.
    pub dash: Dash,
    /// Line, points or both.
    pub shape: SeriesShape,
}

/// A named sequence of points, with a band around it if wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend; an empty name keeps it out of the legend.
    pub name: String,
    /// The axis it is read on.
    pub side: AxisSide,
    /// How it looks.
    pub style: Style,
    /// `(x, y)`. Where y has no place on the axis the line breaks, and the place is marked at the edge.
    pub points: Vec<(f64, f64)>,
    /// `(x, low, high)`. An end beyond the axis is clipped at the frame (as on a log axis an end not above 0); NaN
    /// breaks the band.
    pub band: Option<Vec<(f64, f64, f64)>>,
}

impl Series {
    /// A solid line, read on the left axis.
    pub fn line(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        let style = Style { colour, dash: Dash::Solid, shape: SeriesShape::Line };
        Self { name: name.into(), side: AxisSide::Left, style, points, band: None }
    }

    /// Dots without a line, read on the left axis.
    pub fn scatter(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        let mut series = Self::line(name, colour, points);
        series.style.shape = SeriesShape::Points;
        series
    }

    /// Draws the line in long strokes.
    #[must_use]
    pub fn dashed(mut self) -> Self {
        self.style.dash = Dash::Dashed;
        self
    }

    /// Draws the line in dots.
    #[must_use]
    pub fn dotted(mut self) -> Self {
        self.style.dash = Dash::Dotted;
        self
    }

    /// Adds a dot at every point of the line.
    #[must_use]
    pub fn with_points(mut self) -> Self {
        self.style.shape = SeriesShape::LineAndPoints;
        self
    }

    /// Reads the series on the right axis.
    #[must_use]
    pub fn on_right_axis(mut self) -> Self {
        self.side = AxisSide::Right;
        self
    }

    /// Adds a band of `(x, low, high)`.
    #[must_use]
    pub fn with_band(mut self, band: Vec<(f64, f64, f64)>) -> Self {
        self.band = Some(band);
        self
    }
}

/// A place on the horizontal axis that has a name.
#[derive(Debug, Clone, PartialEq)]
pub struct VerticalMark {
    /// Where.
    pub x: f64,
    /// Its name, written above the frame.
    pub label: String,
}
