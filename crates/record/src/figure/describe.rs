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
    /// Values of the left axis that have a name.
    pub levels: Vec<Level>,
    /// What the colours of points mean ([`Series::with_values`]): drawn as a colour bar right of the frame.
    pub colours: Option<Axis>,
    /// Values over the whole frame, below the series.
    pub field: Option<Field>,
}

impl Panel {
    /// A panel with a left axis only.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self {
            title: title.into(),
            x,
            y,
            y2: None,
            series: Vec::new(),
            marks: Vec::new(),
            levels: Vec::new(),
            colours: None,
            field: None,
        }
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

    /// Adds a dashed horizontal line at `value` of the left axis, named beside the line: chance, a prediction, a target.
    #[must_use]
    pub fn with_level(mut self, value: f64, label: impl Into<String>) -> Self {
        self.levels.push(Level { value, label: label.into() });
        self
    }

    /// Fills the frame with a field, whose values are read on `axis`: a colour bar, and in a surface the height.
    #[must_use]
    pub fn with_field(mut self, field: Field, axis: Axis) -> Self {
        self.field = Some(field);
        self.colours = Some(axis);
        self
    }

    /// Adds a colour bar for [`Series::with_values`]; for lines coloured by [`Colour::scale`], give the axis its range.
    #[must_use]
    pub fn with_colour_bar(mut self, axis: Axis) -> Self {
        self.colours = Some(axis);
        self
    }
}

/// Values over a rectangle, such as a loss surface; [`Panel::with_field`].
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Places of the columns, ascending, evenly spaced, at least two.
    pub x: Vec<f64>,
    /// Places of the rows, likewise.
    pub y: Vec<f64>,
    /// Row by row: the value at `(x[i], y[j])` is `values[j * x.len() + i]`. Those that are not finite are left out and counted below the
    /// panel; what has no place on a log axis is drawn as its lowest value.
    pub values: Vec<f64>,
    /// Map or mountain.
    pub look: FieldLook,
}

/// How a [`Field`] is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldLook {
    /// A filled contour map, with isolines at the colour bar's ticks. Series are drawn over it.
    Map,
    /// A surface in three dimensions, the height read on the colour bar's axis. Series are not drawn.
    Surface,
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
    /// Names instead of numbers: the i-th stands at the value i. Empty on an axis of numbers.
    pub categories: Vec<String>,
    /// Whether ticks stand at whole numbers only.
    pub whole: bool,
}

impl Axis {
    /// A linear axis over all finite values.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear, range: None, categories: Vec::new(), whole: false }
    }

    /// A linear axis of what is counted, such as epochs: no tick stands at a half.
    pub fn whole(label: impl Into<String>) -> Self {
        Self { whole: true, ..Self::linear(label) }
    }

    /// A logarithmic axis over all finite values above 0.
    pub fn log10(label: impl Into<String>) -> Self {
        Self { scale: Scale::Log10, ..Self::linear(label) }
    }

    /// An axis of names: a point at x = 0 belongs to the first, at x = 1 to the second. Values between them are fine:
    /// 0.1 stands a little right of the first. As a vertical axis it is read from the bottom up.
    pub fn categories<S: Into<String>>(label: impl Into<String>, names: impl IntoIterator<Item = S>) -> Self {
        let categories = names.into_iter().map(Into::into).collect();
        Self { categories, ..Self::linear(label) }
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

/// Colours that stay apart for colour-blind readers: Okabe and Ito's palette without its pale yellow, then the dark
/// ones of Paul Tol's muted palette.
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
    /// Dark red.
    Wine,
    /// Yellowish green.
    Olive,
    /// Very dark blue.
    Indigo,
    /// Brown.
    Brown,
    /// Grey, for references and baselines.
    Grey,
    /// Any other, as red, green, blue; see [`Colour::scale`].
    Rgb(u8, u8, u8),
}

/// Viridis (van der Walt and Smith 2015) at nine even steps; between them lines differ from the full table by less
/// than the eye sees.
const VIRIDIS: [(u8, u8, u8); 9] = [
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
];

impl Colour {
    /// The colours in the order in which to use them.
    pub const ALL: [Self; 11] = [
        Self::Blue,
        Self::Vermillion,
        Self::Green,
        Self::Purple,
        Self::Orange,
        Self::Sky,
        Self::Black,
        Self::Wine,
        Self::Olive,
        Self::Indigo,
        Self::Brown,
    ];

    /// The colour of the `index`-th of many series; after eleven they come round again: see [`Series::nth_look`].
    #[must_use]
    pub fn nth(index: usize) -> Self {
        Self::ALL[index % Self::ALL.len()]
    }

    /// A colour for a quantity: viridis from dark violet at 0 over green to yellow at 1, evenly bright in its course and
    /// fit for colour-blind readers. `t` is held within 0 to 1; NaN is grey.
    #[must_use]
    pub fn scale(t: f64) -> Self {
        if t.is_nan() {
            return Self::Grey;
        }
        let place = t.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
        let below = (place as usize).min(VIRIDIS.len() - 2);
        let share = place - below as f64;
        let mix = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
        let (a, b) = (VIRIDIS[below], VIRIDIS[below + 1]);
        Self::Rgb(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
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
            Self::Wine => (136, 34, 85),
            Self::Olive => (140, 140, 30),
            Self::Indigo => (51, 34, 136),
            Self::Brown => (121, 76, 45),
            Self::Grey => (128, 128, 128),
            Self::Rgb(red, green, blue) => (red, green, blue),
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
    /// A stroke, a dot.
    DashDotted,
}

impl Dash {
    /// The dashes in the order in which to use them.
    pub const ALL: [Self; 4] = [Self::Solid, Self::Dashed, Self::Dotted, Self::DashDotted];
}

/// The sign that stands at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square on its side.
    Square,
    /// A triangle on its base.
    TriangleUp,
    /// A square on its corner.
    Diamond,
    /// A triangle on its tip.
    TriangleDown,
    /// A five-pointed star.
    Star,
    /// Two strokes, slanted.
    Cross,
    /// Two strokes, upright.
    Plus,
}

impl Marker {
    /// The markers in the order in which to use them.
    pub const ALL: [Self; 8] = [
        Self::Circle,
        Self::Square,
        Self::TriangleUp,
        Self::Diamond,
        Self::TriangleDown,
        Self::Star,
        Self::Cross,
        Self::Plus,
    ];

    /// The marker of the `index`-th of many series; after eight they come round again.
    #[must_use]
    pub fn nth(index: usize) -> Self {
        Self::ALL[index % Self::ALL.len()]
    }
}

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesShape {
    /// Straight lines from point to point, in the order given.
    Line,
    /// A marker a point.
    Points,
    /// Both.
    LineAndPoints,
    /// Each value holds until the next point's x.
    Steps,
    /// A bar a point, from 0 (on a log axis from the bottom); the bars of several series stand side by side.
    Bars,
}

/// How a series looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Its colour.
    pub colour: Colour,
    /// The dashes of its line.
    pub dash: Dash,
    /// Line, points, bars.
    pub shape: SeriesShape,
    /// The sign at its points.
    pub marker: Marker,
    /// Larger signs at the first and at the last point that can be drawn.
    pub ends: Option<(Marker, Marker)>,
    /// Thin and pale, for the single runs behind their mean.
    pub thin: bool,
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
    /// `(low, high)` of y for each point, drawn as whiskers; `NaN` draws none. Shorter than the points is fine.
    pub whiskers: Vec<(f64, f64)>,
    /// `(low, high)` of x for each point.
    pub x_whiskers: Vec<(f64, f64)>,
    /// A short text beside each point; empty for none.
    pub labels: Vec<String>,
    /// What each point's colour tells, on [`Panel::colours`]; empty for points in the series' own colour.
    pub values: Vec<f64>,
}

impl Series {
    /// A solid line, read on the left axis.
    pub fn line(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        let style = Style {
            colour,
            dash: Dash::Solid,
            shape: SeriesShape::Line,
            marker: Marker::Circle,
            ends: None,
            thin: false,
        };
        Self {
            name: name.into(),
            side: AxisSide::Left,
            style,
            points,
            band: None,
            whiskers: Vec::new(),
            x_whiskers: Vec::new(),
            labels: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Points without a line, read on the left axis.
    pub fn scatter(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        let mut series = Self::line(name, colour, points);
        series.style.shape = SeriesShape::Points;
        series
    }

    /// Bars from 0 (on a log axis from the bottom), side by side with those of other series.
    pub fn bars(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        let mut series = Self::line(name, colour, points);
        series.style.shape = SeriesShape::Bars;
        series
    }

    /// Steps: each value holds until the next point's x; with [`ecdf`], a distribution.
    pub fn steps(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        let mut series = Self::line(name, colour, points);
        series.style.shape = SeriesShape::Steps;
        series
    }

    /// Gives the `index`-th of many series its colour, and dashes and marker that differ where colours come round again.
    #[must_use]
    pub fn nth_look(mut self, index: usize) -> Self {
        self.style.colour = Colour::nth(index);
        self.style.dash = Dash::ALL[index / Colour::ALL.len() % Dash::ALL.len()];
        self.style.marker = Marker::nth(index);
        self
    }

    /// Chooses the sign at the points.
    #[must_use]
    pub fn with_marker(mut self, marker: Marker) -> Self {
        self.style.marker = marker;
        self
    }

    /// Draws larger signs at the first and the last point: where a trajectory begins and ends.
    #[must_use]
    pub fn with_ends(mut self, first: Marker, last: Marker) -> Self {
        self.style.ends = Some((first, last));
        self
    }

    /// Thin and pale, for the single runs behind their mean.
    #[must_use]
    pub fn thin(mut self) -> Self {
        self.style.thin = true;
        self
    }

    /// Adds `(low, high)` of y for each point, drawn as whiskers.
    #[must_use]
    pub fn with_whiskers(mut self, whiskers: Vec<(f64, f64)>) -> Self {
        self.whiskers = whiskers;
        self
    }

    /// Adds `(low, high)` of x for each point, drawn as whiskers.
    #[must_use]
    pub fn with_x_whiskers(mut self, whiskers: Vec<(f64, f64)>) -> Self {
        self.x_whiskers = whiskers;
        self
    }

    /// Writes a short text beside each point, where it hides no point and no other text as far as there is room.
    #[must_use]
    pub fn with_labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Colours each point (or bar) by a value, read on [`Panel::with_colour_bar`]; a value that is not there is grey.
    #[must_use]
    pub fn with_values(mut self, values: Vec<f64>) -> Self {
        self.values = values;
        self
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

    /// Adds a marker at every point of the line.
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

/// A value of the left axis that has a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Where.
    pub value: f64,
    /// Its name, written beside the line.
    pub label: String,
}

/// The empirical distribution for [`Series::steps`]: at each value the share of values not above it, from 0 up.
///
/// Infinite values count in the share but have no step; NaN has no place in the order and is left out.
///
/// ```
/// use flatland_record::ecdf;
/// assert_eq!(ecdf(&[2.0, 1.0, 2.0, f64::INFINITY]), [(1.0, 0.0), (1.0, 0.25), (2.0, 0.75)]);
/// ```
#[allow(clippy::float_cmp)] // Ties are exact.
pub fn ecdf(values: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| !v.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let below = sorted.iter().take_while(|v| **v == f64::NEG_INFINITY).count();
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (index, &value) in sorted.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        let share = (index + 1) as f64 / count;
        match steps.last_mut() {
            None => steps.extend([(value, below as f64 / count), (value, share)]),
            Some(last) if last.0 == value => last.1 = share,
            Some(_) => steps.push((value, share)),
        }
    }
    steps
}
