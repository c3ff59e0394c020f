//! Loss surfaces: loss and accuracy on a line or a plane through θ's space.
//!
//! - `line`, `plane`: θ + a u (+ b v) along random directions, scaled filter by filter to θ (Li et al. 2018, "Visualizing the loss
//!   landscape of neural nets");
//! - `minima`: the plane through three minima found from other initial weights (Garipov et al. 2018, "Loss surfaces, mode
//!   connectivity, and fast ensembling of DNNs");
//! - `pca`: the plane of the first two principal components of θ in the course of training, through its end, with the way there
//!   (Lorch 2016, "Visualizing deep network training trajectories with PCA"; Li et al. 2018).
//!
//! What a plane shows is a slice: two of many dimensions. A minimum of the slice need not be one of the loss, and a random direction is
//! nearly orthogonal to the few in which the loss bends most. The straight line between two minima is `flatness`.

use crate::command::Flag;
use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images};
use crate::module::{self, DATA, MODULE, Splits, file_name};
use crate::run::Run;
use crate::subject::{self, NETWORK, WEIGHTS};
use crate::summary::{loss_words, mean_number, subtitle};
use crate::trial::{
    Both, OfSplit, SPLITS, Trained, Trial, evaluate_all_kept, evaluate_points_kept, stream_of, train_all,
};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_geometry::{Biases, Normalisation, Subspace, even_grid, random_direction};
use flatland_network::snapshot::{from_ndarray, to_ndarray_stacked};
use flatland_network::streams::{Purpose, stream};
use flatland_network::{Evaluation, Loss, Model, Network, OptimiserSettings, Training};
use flatland_record::{
    Axis, Colour, Field, FieldLook, Figure, Marker, Panel, Series, Table, cells, npz, vtk,
};
use flatland_statistics::{Claim, Outcome, Pca, Rule, rank_correlation};
use ndarray::{Array1, Array2, ArrayViewD, Axis as Dimension};
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;
use std::fmt;
use std::path::Path;
use tch::{Kind as TensorKind, Tensor};

/// `configs/landscape.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub network: String,
    pub weights: Vec<String>,
    pub module: String,
    pub data: String,
    pub surfaces: Vec<Kind>,
    pub normalisation: Normalisation,
    pub biases: Biases,
    pub batch: i64,
    pub epochs: u32,
    pub optimiser: OptimiserSettings,
    pub images: ImageSettings,
    pub line: Range,
    pub plane: Range,
    pub minima: Around,
    pub pca: Around,
}

/// Which surface is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Along a random direction.
    Line,
    /// Along two random directions.
    Plane,
    /// Through three minima.
    Minima,
    /// Along the first two principal components of a trajectory.
    Pca,
}

/// Where to look along a random direction, in steps of its length.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Range {
    pub from: f64,
    pub to: f64,
    pub points: usize,
}

/// How far to look around what has its own place.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Around {
    pub margin: f64,
    pub points: usize,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Line, Self::Plane, Self::Minima, Self::Pca];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Line => "line",
            Self::Plane => "plane",
            Self::Minima => "minima",
            Self::Pca => "pca",
        })
    }
}

/// `--surface`, for the key `surfaces`.
const SURFACE: Flag = Flag {
    name: "surface",
    key: "surfaces",
    many: true,
    file: false,
    value_name: "NAME",
    help: "Surface to look at: line, plane, minima or pca; may be repeated [default: all that fit]",
    excludes: &[],
};

/// Minima that a plane goes through.
const MINIMA: usize = 3;
/// Points along a side, at most: a million points take a day.
const MOST_POINTS: usize = 1001;

/// What is looked at in one repetition.
struct Subject {
    seed: u64,
    /// θ, or the three minima: `[P]` on the CPU.
    thetas: Vec<Tensor>,
    /// θ before training and after each epoch, `[epochs + 1, P]`.
    snapshots: Option<Array2<f64>>,
}

/// Where a surface is evaluated.
struct Place {
    kind: Kind,
    seed: u64,
    subspace: Subspace,
    x: Vec<f64>,
    /// One value for a line.
    y: Vec<f64>,
    marks: Vec<Mark>,
    /// Of the variance of θ in training, what each axis holds, 0 to 1; for `pca` alone.
    explained: Option<[f64; 2]>,
}

/// A model with a name.
struct Mark {
    name: String,
    /// Its place in the plane, or that of its projection.
    at: [f64; 2],
    /// The model itself, which for a projection is not quite in the plane.
    theta: Tensor,
}

/// A surface, evaluated.
struct Surface {
    place: Place,
    /// Row by row, as [`Field`] has it.
    points: Vec<Both>,
    marks: Vec<Both>,
    /// Without test examples there is nothing of them in tables and figures.
    tested: bool,
    loss: Loss,
}

/// One number read off a surface.
struct Measure {
    kind: Kind,
    seed: u64,
    name: &'static str,
    unit: &'static str,
    /// `train`, `test`, or `both` for a comparison of the two.
    split: &'static str,
    value: Option<f64>,
}

/// The experiment.
#[derive(Debug)]
pub struct Landscape;

impl Experiment for Landscape {
    const NAME: &'static str = "landscape";
    const ABOUT: &'static str = "What does the loss look like around a minimum, between three minima, and along the way there? \
        Loss and accuracy on lines and planes through the space of the weights.";
    const EXAMPLES: &'static str = "Examples:
  landscape --preset quick --dataset digits       half a minute, no files needed
  landscape --surface plane --set plane.points=51  the plane of two random directions alone
  landscape --weights model.safetensors           around a model of your own
  landscape --weights a.safetensors --weights b.safetensors --weights c.safetensors
  landscape --module mine.pt --data mine.npz      a TorchScript module of your own, with data of your own
  landscape --resume                              after Ctrl-C or a crash: finished points are kept";
    const FLAGS: &'static [Flag] = &[NETWORK, WEIGHTS, MODULE, DATA, SURFACE];
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 306.), ("fine", 442.), ("quick", 19.)];
    const PRESETS: &'static str = include_str!("../../../configs/landscape.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        settings.images.preparation().check()?;
        subject::network(&settings.network)?;
        module::check(&settings.module, &settings.data, &settings.weights, &settings.network)?;
        let given = settings.given();
        ensure!(
            [0, 1, MINIMA].contains(&given),
            "weights must be none, one file, or {MINIMA} (for the plane through {MINIMA} minima), found {given}"
        );
        for (index, kind) in settings.surfaces.iter().enumerate() {
            ensure!(
                !settings.surfaces[..index].contains(kind),
                "surfaces must be different, found {kind} twice"
            );
        }
        ensure!(
            given == 0 || !settings.surfaces.contains(&Kind::Pca),
            "the surface pca needs a course of training, and a model given is not trained: leave out pca, or --weights and --module"
        );
        ensure!(
            given != 1 || !settings.surfaces.contains(&Kind::Minima),
            "the surface minima goes through {MINIMA} minima, found one model: give --weights {MINIMA} times"
        );
        for (key, range) in [("line", settings.line), ("plane", settings.plane)] {
            even_grid(range.from, range.to, range.points).context(key)?;
            check_points(key, range.points)?;
        }
        for (key, around) in [("minima", settings.minima), ("pca", settings.pca)] {
            even_grid(0., 1., around.points).context(key)?;
            check_points(key, around.points)?;
            ensure!(
                (0. ..=10.).contains(&around.margin),
                "{key}.margin must lie between 0 and 10, found {}",
                around.margin
            );
        }
        // Two points lie on a line.
        let least = if settings.wanted().contains(&Kind::Pca) { 2 } else { 1 };
        ensure!(settings.epochs >= least, "epochs must be at least {least}, found {}", settings.epochs);
        settings.optimiser.check().context("optimiser")?;
        Training::check_batch(settings.batch, settings.images.preparation().most()).context("batch")?;
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let (model, splits, subjects) = if settings.module.is_empty() {
            let network = subject::network(&settings.network)?;
            // A file that is no model's is found out before anything is loaded or trained.
            let given = settings.weights.iter().map(|path| subject::weights(&network, Path::new(path)));
            let given = given.collect::<Result<Vec<Tensor>>>()?;
            let images =
                Images::load(run, settings.dataset, subject::preparation(&network, &settings.images))?;
            let subjects = if given.is_empty() {
                trained_subjects(settings, run, &network, &images)?
            } else {
                given_subjects(settings, &given)
            };
            (Model::Network(network), Splits::of(&images), subjects)
        } else {
            let (module, splits) = module::load(run, &settings.module, &settings.data)?;
            let subjects = given_subjects(settings, &[module.theta()?]);
            (Model::Module(module), splits, subjects)
        };

        let mut surfaces = Vec::new();
        for subject in &subjects {
            for kind in settings.wanted() {
                // The plane through three given minima is the same in every repetition.
                if kind == Kind::Minima && settings.given() > 0 && subject.seed != settings.seed {
                    continue;
                }
                let place = settings.place(run, &model, subject, kind)?;
                surfaces.push(evaluate_surface(run, &model, &splits, place)?);
            }
        }
        run.write_table(
            "surface",
            &surface_table(&surfaces)?,
            "loss and accuracy at every point of every surface",
        )?;
        run.write_table(
            "marks",
            &marks_table(&surfaces)?,
            "the models themselves: minima, and the way of training",
        )?;
        run.write_table(
            "directions",
            &directions_table(&surfaces)?,
            "the axes of the surfaces: lengths, angles",
        )?;
        for surface in &surfaces {
            write_arrays(run, surface)?;
            if surface.place.seed == settings.seed {
                draw(settings, run, &model, surface)?;
            }
        }
        let measures = surfaces.iter().flat_map(Surface::measures).collect::<Vec<_>>();
        run.write_table("measures", &measures_table(&measures)?, "what is read off each surface")?;
        run.write_claims(judge(&measures))?;
        Ok(closing_table(settings, &measures))
    }
}

fn check_points(key: &str, points: usize) -> Result<()> {
    ensure!(points <= MOST_POINTS, "{key}.points must be at most {MOST_POINTS}, found {points}");
    Ok(())
}

impl Settings {
    /// How many models are given, and not trained.
    fn given(&self) -> usize {
        self.weights.len() + usize::from(!self.module.is_empty())
    }

    /// The surfaces asked for, or all that fit what is looked at.
    fn wanted(&self) -> Vec<Kind> {
        if !self.surfaces.is_empty() {
            return self.surfaces.clone();
        }
        let fits = |kind: &Kind| match kind {
            Kind::Line | Kind::Plane => true,
            Kind::Minima => self.given() != 1,
            Kind::Pca => self.given() == 0,
        };
        Kind::ALL.into_iter().filter(fits).collect()
    }

    /// How many models a repetition trains.
    fn draws(&self) -> usize {
        if self.wanted().contains(&Kind::Minima) { MINIMA } else { 1 }
    }

    fn trials(&self) -> Vec<Trial> {
        let trial = |seed: u64, draw: usize| Trial {
            name: format!("seed{seed}-batch{}-draw{draw}", self.batch),
            network: 0,
            images: 0,
            seed,
            stream: stream_of(&format!("batch {}, draw {draw}", self.batch)),
            optimiser: self.optimiser,
            batch: self.batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: draw == 0 && self.wanted().contains(&Kind::Pca),
        };
        let seeds = Landscape::seeds(self);
        seeds.into_iter().flat_map(|seed| (0..self.draws()).map(move |draw| trial(seed, draw))).collect()
    }

    fn place(&self, run: &Run, model: &Model, subject: &Subject, kind: Kind) -> Result<Place> {
        let device = run.device.device;
        let thetas = subject.thetas.iter().map(|theta| Ok(theta.f_to_device(device)?));
        let thetas = thetas.collect::<Result<Vec<Tensor>>>()?;
        let seed = subject.seed;
        match kind {
            Kind::Line | Kind::Plane => {
                // Those of the line are others than the plane's.
                let (range, numbers) =
                    if kind == Kind::Line { (self.line, 0..1) } else { (self.plane, 1..3) };
                let direction = |number: u32| {
                    let mut random = stream(seed, 0, number, Purpose::Direction);
                    random_direction(
                        model.parameters(),
                        &thetas[0],
                        self.normalisation,
                        self.biases,
                        &mut random,
                    )
                };
                let axes = numbers.map(direction).collect::<Result<Vec<_>, _>>()?;
                let side = even_grid(range.from, range.to, range.points)?;
                let y = if kind == Kind::Line { vec![0.] } else { side.clone() };
                let mark = Mark { name: "model".into(), at: [0., 0.], theta: thetas[0].shallow_clone() };
                let subspace = Subspace::new(&thetas[0], &axes)?;
                Ok(Place { kind, seed, subspace, x: side, y, marks: vec![mark], explained: None })
            }
            Kind::Minima => {
                let [first, second, third] = thetas.as_slice() else {
                    bail!("the surface minima needs {MINIMA} models, found {}", thetas.len());
                };
                let found = Subspace::through([first, second, third]);
                let (subspace, corners) = found.context("the surface minima")?;
                let names = ["θ₀", "θ₁", "θ₂"];
                let mut marks: Vec<Mark> = Vec::new();
                for ((name, at), theta) in names.into_iter().zip(corners).zip(&thetas) {
                    marks.push(Mark { name: name.into(), at, theta: theta.shallow_clone() });
                }
                let mean =
                    |axis: usize| corners.iter().map(|corner| corner[axis]).sum::<f64>() / MINIMA as f64;
                let at = [mean(0), mean(1)];
                marks.push(Mark { name: "centroid".into(), at, theta: subspace.at(&at)? });
                // A square, so that lengths are the same along both axes.
                let [(left, right), (low, high)] = [0, 1].map(|axis| ends(corners.iter().map(|at| at[axis])));
                let half = (right - left).max(high - low) * (0.5 + self.minima.margin);
                let side = |middle: f64| even_grid(middle - half, middle + half, self.minima.points);
                let (x, y) = (side(f64::midpoint(left, right))?, side(f64::midpoint(low, high))?);
                Ok(Place { kind, seed, subspace, x, y, marks, explained: None })
            }
            Kind::Pca => {
                let snapshots =
                    subject.snapshots.as_ref().context("the surface pca needs a course of training")?;
                self.trajectory_plane(run, subject, snapshots)
            }
        }
    }

    /// Through the last snapshot, along the first two components of all of them.
    fn trajectory_plane(&self, run: &Run, subject: &Subject, snapshots: &Array2<f64>) -> Result<Place> {
        let pca = Pca::fit(snapshots.view(), 2)
            .context("the surface pca: the course of training spans no plane")?;
        let (device, last) = (run.device.device, snapshots.nrows() - 1);
        let axes: Vec<Tensor> = pca
            .components
            .rows()
            .into_iter()
            .map(|axis| from_ndarray(&axis.to_owned(), TensorKind::Double, device))
            .collect::<Result<_, _>>()?;
        let end = pca.scores.row(last);
        let mut marks = Vec::new();
        for (epoch, (score, theta)) in pca.scores.rows().into_iter().zip(snapshots.rows()).enumerate() {
            let theta = from_ndarray(&theta.to_owned(), TensorKind::Float, device)?;
            let at = [score[0] - end[0], score[1] - end[1]];
            marks.push(Mark { name: format!("epoch {epoch}"), at, theta });
        }
        let subspace = Subspace::new(&subject.thetas[0].f_to_device(device)?, &axes)?;
        let around = |axis: usize, least: f64| {
            let (low, high) = ends(marks.iter().map(|mark| mark.at[axis]));
            // The second component is much shorter; a strip would show nothing beside the path.
            let half = (high - low).max(least) * (0.5 + self.pca.margin);
            let middle = f64::midpoint(low, high);
            Ok::<_, anyhow::Error>((even_grid(middle - half, middle + half, self.pca.points)?, high - low))
        };
        let (x, length) = around(0, 0.)?;
        let (y, _) = around(1, length / 2.)?;
        let explained = Some([pca.explained_variance_ratio[0], pca.explained_variance_ratio[1]]);
        Ok(Place { kind: Kind::Pca, seed: subject.seed, subspace, x, y, marks, explained })
    }

    fn subtitle(&self, run: &Run, name: &str, more: &str) -> String {
        let name = if name == "lenet" { "LeNet" } else { name };
        let data = if self.data.is_empty() { self.dataset.to_string() } else { file_name(&self.data).into() };
        let subject = format!("{name} on {data}");
        let first = if self.seeds > 1 { format!("shown: seed {} · ", self.seed) } else { String::new() };
        let model = if self.given() == 0 {
            format!("{} epochs, batch {}", self.epochs, self.batch)
        } else {
            if self.module.is_empty() { "weights given" } else { "module given" }.to_owned()
        };
        subtitle::<Landscape>(self, run, &subject, &format!("{first}{model} · {more}"))
    }

    /// What random directions are scaled by, in words.
    fn scaling(&self) -> &'static str {
        match self.normalisation {
            Normalisation::Filter => "scaled filter by filter",
            Normalisation::Layer => "scaled layer by layer",
            Normalisation::Weight => "scaled weight by weight",
            Normalisation::None => "standard normal, not scaled",
        }
    }
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// The same models in each repetition.
fn given_subjects(settings: &Settings, given: &[Tensor]) -> Vec<Subject> {
    let thetas = || given.iter().map(Tensor::shallow_clone).collect();
    let seeds = Landscape::seeds(settings).into_iter();
    seeds.map(|seed| Subject { seed, thetas: thetas(), snapshots: None }).collect()
}

/// The models of each repetition, trained.
fn trained_subjects(
    settings: &Settings,
    run: &Run,
    network: &Network,
    images: &Images,
) -> Result<Vec<Subject>> {
    let seeds = Landscape::seeds(settings);
    let trials = settings.trials();
    let trained = train_all(run, std::slice::from_ref(network), &[images.share()], &trials)?;
    let keys =
        trials.iter().enumerate().map(|(index, trial)| cells![trial.seed, index % settings.draws()].to_vec());
    let curves = trained.iter().map(|one| one.curve.as_slice());
    run.write_table(
        "training",
        &curve_table(&["seed", "draw"], keys.zip(curves))?,
        "loss and accuracy by epoch",
    )?;
    run.write_figure("training", &training_figure(settings, run, network, &trained), "training curves")?;
    let mut trained = trained.into_iter();
    let mut subjects = Vec::new();
    for seed in seeds {
        let models: Vec<Trained> = trained.by_ref().take(settings.draws()).collect();
        let snapshots = models[0].snapshots.as_ref().map(to_ndarray_stacked).transpose()?;
        subjects.push(Subject { seed, thetas: models.into_iter().map(|one| one.theta).collect(), snapshots });
    }
    Ok(subjects)
}

fn training_figure(settings: &Settings, run: &Run, network: &Network, trained: &[Trained]) -> Figure {
    let curves = trained.iter().map(|one| one.curve.as_slice()).collect();
    let group = Group { name: network.name().to_owned(), colour: Colour::Blue, curves };
    let more = format!("{} models · train: mean over the epoch; test: after it", trained.len());
    Figure::new(
        "The models in training",
        settings.subtitle(run, network.name(), &more),
        curve_panels(&[group]),
    )
}

/// The grid, then the marks. Finished passes are kept.
fn evaluate_surface(run: &Run, model: &Model, splits: &Splits, place: Place) -> Result<Surface> {
    let dimensions = place.subspace.dimensions();
    let rows = place.y.iter().flat_map(|&y| place.x.iter().map(move |&x| [x, y]));
    let coordinates: Vec<Vec<f64>> = rows.map(|at| at[..dimensions].to_vec()).collect();
    let what = format!("{}, seed {}", place.kind, place.seed);
    let name = |index: usize| {
        let numbers: Vec<String> = coordinates[index].iter().map(|x| format!("{x:.2}")).collect();
        numbers.join(", ")
    };
    let subject = (model, splits);
    let points = evaluate_points_kept(run, &what, subject, &place.subspace, &coordinates, name)?;
    let thetas = || Ok(place.marks.iter().map(|mark| mark.theta.shallow_clone()).collect());
    let names: Vec<&str> = place.marks.iter().map(|mark| mark.name.as_str()).collect();
    let marks = evaluate_all_kept(
        run,
        &format!("{what}, models"),
        subject,
        names.len(),
        thetas,
        |thetas: &Vec<Tensor>, index| Ok(thetas[index].shallow_clone()),
        |index| names[index].to_owned(),
    )?;
    Ok(Surface { place, points, marks, tested: splits.test.is_some(), loss: splits.loss })
}

/// A quantity of a surface: its name, unit included, and how to take it.
type Quantity = (&'static str, fn(&Both) -> f64);

/// In the order of the files.
const QUANTITIES: [Quantity; 4] = [
    ("train_loss", |both| both.train.loss),
    ("test_loss", |both| both.test.loss),
    ("train_accuracy", |both| both.train.accuracy.unwrap_or(f64::NAN)),
    ("test_accuracy", |both| both.test.accuracy.unwrap_or(f64::NAN)),
];

impl Surface {
    /// Those that there are: of test examples and of classes only where there are any.
    fn quantities(&self) -> Vec<Quantity> {
        let classified = self.points.iter().any(|both| both.train.accuracy.is_some());
        let there = |(name, _): &Quantity| {
            (self.tested || name.starts_with("train")) && (classified || name.ends_with("loss"))
        };
        QUANTITIES.into_iter().filter(there).collect()
    }

    /// The splits that there are.
    fn splits(&self) -> &'static [OfSplit] {
        &SPLITS[..if self.tested { 2 } else { 1 }]
    }

    /// `[rows, columns]`.
    fn array(&self, of: fn(&Both) -> f64) -> Array2<f64> {
        let columns = self.place.x.len();
        Array2::from_shape_fn((self.place.y.len(), columns), |(j, i)| of(&self.points[j * columns + i]))
    }

    fn is_line(&self) -> bool {
        self.place.kind == Kind::Line
    }

    /// The value at a place inside the grid, between its points by straight lines along both axes; `None` outside.
    fn read(&self, [x, y]: [f64; 2], of: fn(&Both) -> f64) -> Option<f64> {
        let (left, across) = between(&self.place.x, x)?;
        let (below, up) = if self.is_line() { (0, 0.) } else { between(&self.place.y, y)? };
        let columns = self.place.x.len();
        let mut sum = 0.;
        for (row, weight) in [(below, 1. - up), (below + 1, up)] {
            for (column, share) in [(left, 1. - across), (left + 1, across)] {
                // A value without weight may be infinite.
                if weight * share > 0. {
                    sum += weight * share * of(&self.points[row * columns + column]);
                }
            }
        }
        Some(sum)
    }

    /// The losses at a distance from θ: at both places of a line, at 72 of a circle; `None` where one lies outside.
    fn around(&self, radius: f64, of: fn(&Both) -> f64) -> Option<Vec<f64>> {
        if self.is_line() {
            return [-radius, radius].into_iter().map(|x| self.read([x, 0.], of)).collect();
        }
        let angles = (0..72).map(|k| TAU * f64::from(k) / 72.);
        angles.map(|angle| self.read([radius * angle.cos(), radius * angle.sin()], of)).collect()
    }

    /// Where the grid's lowest finite value is, and which.
    fn lowest(&self, of: fn(&Both) -> f64) -> Option<([f64; 2], f64)> {
        let columns = self.place.x.len();
        let values = self.points.iter().map(of).enumerate().filter(|(_, value)| value.is_finite());
        let (index, value) = values.min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(([self.place.x[index % columns], self.place.y[index / columns]], value))
    }

    fn measures(&self) -> Vec<Measure> {
        let Place { kind, seed, .. } = self.place;
        let [unit, ..] = loss_words(self.loss);
        let mut measures = Vec::new();
        let mut add =
            |name, unit, split, value| measures.push(Measure { kind, seed, name, unit, split, value });
        let random = matches!(kind, Kind::Line | Kind::Plane);
        let distance = if random { "steps" } else { "distance in θ" };
        let losses: [Quantity; 2] = [("train", |both| both.train.loss), ("test", |both| both.test.loss)];
        for &(split, of) in &losses[..self.splits().len()] {
            let models: Vec<f64> = self.marks.iter().map(of).collect();
            match kind {
                Kind::Line | Kind::Plane => {
                    add("loss_at_model", unit, split, Some(models[0]));
                    for (mean, most, radius) in
                        [("mean_rise_0.5", "largest_rise_0.5", 0.5), ("mean_rise_1", "largest_rise_1", 1.)]
                    {
                        let around = self.around(radius, of);
                        let rise = |value: f64| value - models[0];
                        let average =
                            |values: &Vec<f64>| rise(values.iter().sum::<f64>() / values.len() as f64);
                        // f64::max would pass over a NaN.
                        let largest = |values: &Vec<f64>| {
                            rise(
                                values
                                    .iter()
                                    .copied()
                                    .reduce(|a, b| if a > b || a.is_nan() { a } else { b })
                                    .unwrap_or(f64::NAN),
                            )
                        };
                        add(mean, unit, split, around.as_ref().map(average));
                        add(most, unit, split, around.as_ref().map(largest));
                    }
                }
                Kind::Minima => {
                    let highest = models[..MINIMA].iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    add("loss_at_highest_minimum", unit, split, Some(highest));
                    add("centroid_rise", unit, split, Some(models[MINIMA] - highest));
                }
                Kind::Pca => add("loss_at_end", unit, split, models.last().copied()),
            }
            let lowest = self.lowest(of);
            add("lowest_loss", unit, split, lowest.map(|(_, value)| value));
            if random {
                add("lowest_from_model", distance, split, lowest.map(|([x, y], _)| x.hypot(y)));
            }
        }
        if self.tested {
            let both: Vec<(f64, f64)> =
                self.points.iter().map(|both| (both.train.loss, both.test.loss)).collect();
            add("rank_correlation", "1", "both", rank_correlation(&both));
            let [train, test] = losses.map(|(_, of)| self.lowest(of));
            let apart = train.zip(test).map(|((a, _), (b, _))| (a[0] - b[0]).hypot(a[1] - b[1]));
            add("lowest_apart", distance, "both", apart);
        }
        if let Some([first, second]) = self.place.explained {
            add("explained_by_two", "1", "train", Some(first + second));
        }
        measures
    }
}

/// The place below, and how far to the next one, 0 to 1; `None` outside.
fn between(places: &[f64], at: f64) -> Option<(usize, f64)> {
    let last = places.len() - 1;
    let slack = 1e-9 * (places[last] - places[0]);
    if !(places[0] - slack..=places[last] + slack).contains(&at) {
        return None;
    }
    let below = places.partition_point(|place| *place <= at).clamp(1, last) - 1;
    let share = (at - places[below]) / (places[below + 1] - places[below]);
    Some((below, share.clamp(0., 1.)))
}

fn loss_column(surfaces: &[Surface]) -> &'static str {
    surfaces.first().map_or("loss_nats", |surface| loss_words(surface.loss)[2])
}

fn surface_table(surfaces: &[Surface]) -> Result<Table> {
    let mut table = Table::new(&["surface", "seed", "x", "y", "split", loss_column(surfaces), "accuracy"]);
    for surface in surfaces {
        let Place { kind, seed, x, y, .. } = &surface.place;
        let places = y.iter().flat_map(|&y| x.iter().map(move |&x| (x, y)));
        for ((x, y), both) in places.zip(&surface.points) {
            let y = (!surface.is_line()).then_some(y);
            for &(split, of) in surface.splits() {
                let Evaluation { loss, accuracy } = of(both);
                table.row(cells![kind.to_string(), *seed, x, y, split, loss, accuracy])?;
            }
        }
    }
    Ok(table)
}

fn marks_table(surfaces: &[Surface]) -> Result<Table> {
    let loss = loss_column(surfaces);
    let mut table = Table::new(&["surface", "seed", "mark", "x", "y", "split", loss, "accuracy"]);
    for surface in surfaces {
        let Place { kind, seed, marks, .. } = &surface.place;
        for (mark, both) in marks.iter().zip(&surface.marks) {
            let y = (!surface.is_line()).then_some(mark.at[1]);
            for &(split, of) in surface.splits() {
                let Evaluation { loss, accuracy } = of(both);
                let name = mark.name.as_str();
                table.row(cells![kind.to_string(), *seed, name, mark.at[0], y, split, loss, accuracy])?;
            }
        }
    }
    Ok(table)
}

fn directions_table(surfaces: &[Surface]) -> Result<Table> {
    let mut table =
        Table::new(&["surface", "seed", "axis", "length", "cosine_to_x", "explained_variance_ratio"]);
    for surface in surfaces {
        let Place { kind, seed, subspace, explained, .. } = &surface.place;
        let products = subspace.products()?;
        for (index, row) in products.iter().enumerate() {
            let length = row[index].sqrt();
            let cosine = row[0] / (length * products[0][0].sqrt());
            let explained = explained.map(|shares| shares[index]);
            table.row(cells![kind.to_string(), *seed, ["x", "y"][index], length, cosine, explained])?;
        }
    }
    Ok(table)
}

fn measures_table(measures: &[Measure]) -> Result<Table> {
    let mut table = Table::new(&["surface", "seed", "measure", "unit", "split", "value"]);
    for Measure { kind, seed, name, unit, split, value } in measures {
        table.row(cells![kind.to_string(), *seed, *name, *unit, *split, *value])?;
    }
    Ok(table)
}

/// `surfaces/<kind>-seed<seed>.npz`, and for planes `.vtk`.
fn write_arrays(run: &Run, surface: &Surface) -> Result<()> {
    let Place { kind, seed, x, y, .. } = &surface.place;
    let path = format!("surfaces/{kind}-seed{seed}");
    let values: Vec<_> = surface.quantities().iter().map(|&(name, of)| (name, surface.array(of))).collect();
    let (x_array, y_array) = (Array1::from(x.clone()), Array1::from(y.clone()));
    let mut arrays: Vec<(&str, ArrayViewD<f64>)> = vec![("x", x_array.view().into_dyn())];
    if surface.is_line() {
        let rows = values.iter().map(|(name, array)| (*name, array.index_axis(Dimension(0), 0).into_dyn()));
        arrays.extend(rows);
        return run.write_file(&format!("{path}.npz"), &npz(&arrays)?, "the line's arrays, for NumPy");
    }
    arrays.push(("y", y_array.view().into_dyn()));
    arrays.extend(values.iter().map(|(name, array)| (*name, array.view().into_dyn())));
    run.write_file(&format!("{path}.npz"), &npz(&arrays)?, "the surface's arrays, for NumPy")?;

    let logs: Vec<_> = [("log10_train_loss", 0), ("log10_test_loss", 1)][..surface.splits().len()]
        .iter()
        .map(|&(name, index): &(&str, usize)| (name, values[index].1.mapv(f64::log10)))
        .collect();
    let height = relief(&logs[0].1, x[x.len() - 1] - x[0]);
    let scalars = values.iter().chain(&logs).map(|(name, array)| (*name, array.view().into_dyn()));
    let title = format!(
        "Flatland landscape: {kind}, seed {seed}; z is log10 of the training loss, scaled to half the width"
    );
    let bytes =
        vtk(&title, (x.as_slice(), y.as_slice()), &height.view().into_dyn(), &scalars.collect::<Vec<_>>())?;
    run.write_file(&format!("{path}.vtk"), &bytes, "the surface as a grid, for ParaView")
}

/// Heights from 0 to half the width of the plane; what is not finite stands at the highest or lowest that is.
fn relief(logs: &Array2<f64>, width: f64) -> Array2<f64> {
    let (low, high) = ends(logs.iter().copied().filter(|value| value.is_finite()));
    let scale = if high > low { 0.5 * width / (high - low) } else { 0. };
    let height = |value: f64| {
        let value = if value.is_nan() { high } else { value.clamp(low.min(high), high.max(low)) };
        let height = scale * (value - low);
        if height.is_finite() { height } else { 0. }
    };
    logs.mapv(height)
}

/// What the axes of a plane are.
fn axes(place: &Place) -> [Axis; 2] {
    let (x, y) = match place.kind {
        Kind::Line => ("steps along a random direction".to_owned(), String::new()),
        Kind::Plane => ("first random direction".to_owned(), "second random direction".to_owned()),
        Kind::Minima => ("distance from θ₀ towards θ₁".to_owned(), "distance from the line θ₀θ₁".to_owned()),
        Kind::Pca => {
            let percent = place.explained.unwrap_or_default().map(|share| 100. * share);
            let name =
                |number: usize, percent: f64| format!("component {number} ({percent:.1} % of the variance)");
            (name(1, percent[0]), name(2, percent[1]))
        }
    };
    [Axis::linear(x), Axis::linear(y)]
}

fn draw(settings: &Settings, run: &Run, model: &Model, surface: &Surface) -> Result<()> {
    let name = model.name();
    let kind = surface.place.kind;
    if surface.is_line() {
        let figure = line_figure(settings, run, name, surface);
        return run.write_figure("line", &figure, "loss and accuracy along a random direction");
    }
    let what = match kind {
        Kind::Minima => "the plane through three minima",
        Kind::Pca => "the plane of the way of training",
        _ => "the plane of two random directions",
    };
    run.write_figure(&kind.to_string(), &map_figure(settings, run, name, surface), what)?;
    let figure = surface_figure(settings, run, name, surface);
    run.write_figure(&format!("{kind}_3d"), &figure, &format!("{what}, as a surface"))
}

fn line_figure(settings: &Settings, run: &Run, name: &str, surface: &Surface) -> Figure {
    let [x, _] = axes(&surface.place);
    let mut panel = Panel::new("", x, Axis::log10(loss_words(surface.loss)[1]));
    for (quantity, of) in surface.quantities() {
        let is_loss = quantity.ends_with("loss");
        let (scale, colour) = if is_loss { (1., Colour::Blue) } else { (100., Colour::Vermillion) };
        let points = surface.place.x.iter().zip(&surface.points).map(|(x, both)| (*x, scale * of(both)));
        let mut series = Series::line(quantity.replace('_', " "), colour, points.collect());
        if quantity.starts_with("test") {
            series = series.dashed();
        }
        if !is_loss {
            panel = panel.with_right_axis(Axis::linear("accuracy (%)").with_range(0., 100.));
            series = series.on_right_axis();
        }
        panel = panel.with(series);
    }
    for mark in &surface.place.marks {
        panel = panel.with_mark(mark.at[0], mark.name.clone());
    }
    let more = format!("a random direction, {}", settings.scaling());
    Figure::new("The loss along a random direction", settings.subtitle(run, name, &more), vec![panel])
}

/// Its title, and what its subtitle adds.
fn words(settings: &Settings, surface: &Surface) -> (&'static str, String) {
    match surface.place.kind {
        Kind::Minima => ("The plane through three minima", "distances are those of θ's space".to_owned()),
        Kind::Pca => (
            "The way of training in the plane of its principal components",
            "the plane goes through the end of the way, whose other points are projected · numbers: epochs"
                .to_owned(),
        ),
        _ => {
            let scaling = settings.scaling();
            ("The loss around a minimum", format!("two random directions, {scaling}"))
        }
    }
}

/// A panel for each quantity: train left, test right; loss above, accuracy below. Both splits share a scale.
fn map_figure(settings: &Settings, run: &Run, name: &str, surface: &Surface) -> Figure {
    let loss = loss_axis(surface);
    let panels = surface.quantities().into_iter().map(|quantity| {
        let (scale, colours) = if quantity.0.ends_with("loss") {
            (1., loss.clone())
        } else {
            (100., Axis::linear("accuracy (%)").with_range(0., 100.))
        };
        let [x, y] = axes(&surface.place);
        let panel = Panel::new(quantity.0.replace('_', " "), x, y);
        let panel = panel.with_field(field(surface, quantity, scale, FieldLook::Map), colours);
        marks(surface).into_iter().fold(panel, Panel::with)
    });
    let (title, more) = words(settings, surface);
    let figure = Figure::new(title, settings.subtitle(run, name, &more), panels.collect());
    // Frames are square, where both axes have one unit.
    Figure { columns: Some(2), panel_size: Some((560., 476.)), ..figure }
}

fn surface_figure(settings: &Settings, run: &Run, name: &str, surface: &Surface) -> Figure {
    let loss = loss_axis(surface);
    let panels = QUANTITIES[..surface.splits().len()].iter().map(|&quantity| {
        let [x, y] = axes(&surface.place);
        let panel = Panel::new(quantity.0.replace('_', " "), x, y);
        panel.with_field(field(surface, quantity, 1., FieldLook::Surface), loss.clone())
    });
    let (title, _) = words(settings, surface);
    let more = if matches!(surface.place.kind, Kind::Plane) {
        format!("two random directions, {}", settings.scaling())
    } else {
        "distances are those of θ's space".to_owned()
    };
    let figure = Figure::new(title, settings.subtitle(run, name, &more), panels.collect());
    Figure { columns: Some(2), panel_size: Some((600., 480.)), ..figure }
}

fn field(surface: &Surface, (_, of): Quantity, scale: f64, look: FieldLook) -> Field {
    let values = surface.points.iter().map(|both| scale * of(both)).collect();
    Field { x: surface.place.x.clone(), y: surface.place.y.clone(), values, look }
}

/// Of both splits, so that colours compare.
fn loss_axis(surface: &Surface) -> Axis {
    let axis = Axis::log10(loss_words(surface.loss)[1]);
    let losses = surface.points.iter().flat_map(|both| [both.train.loss, both.test.loss]);
    let (low, high) = ends(losses.filter(|loss| loss.is_finite() && *loss > 0.));
    if low < high { axis.with_range(low, high) } else { axis }
}

/// What is drawn over a map.
fn marks(surface: &Surface) -> Vec<Series> {
    let marks = &surface.place.marks;
    let points = |marks: &[Mark]| marks.iter().map(|mark| (mark.at[0], mark.at[1])).collect::<Vec<_>>();
    match surface.place.kind {
        Kind::Pca => {
            let last = marks.len() - 1;
            // Most happens in the first epochs; the later ones lie in a heap.
            let has_text =
                |epoch: usize| epoch == last || epoch == 0 || epoch.is_power_of_two() && 3 * epoch < 2 * last;
            let texts =
                (0..marks.len()).map(|epoch| if has_text(epoch) { epoch.to_string() } else { String::new() });
            let way = Series::line("way of training", Colour::Vermillion, points(marks)).with_points();
            vec![way.with_ends(Marker::Square, Marker::Star).with_labels(texts)]
        }
        Kind::Minima => {
            let names = marks[..MINIMA].iter().map(|mark| mark.name.clone());
            vec![
                Series::scatter("minima", Colour::Vermillion, points(&marks[..MINIMA]))
                    .with_marker(Marker::Star)
                    .with_labels(names),
                Series::scatter("centroid", Colour::Vermillion, points(&marks[MINIMA..]))
                    .with_marker(Marker::Diamond),
            ]
        }
        _ => vec![Series::scatter("model", Colour::Vermillion, points(marks)).with_marker(Marker::Star)],
    }
}

/// Fixed before the data.
const CLAIMS: [Claim; 5] = [
    Claim {
        id: "surfaces-alike",
        statement: "Around a minimum, training and test loss rank the points of a random plane alike",
        source: "Flatland",
        statistic: "Spearman's rank correlation of training and test loss over the points of `plane`",
        rule: Rule::MeanAbove(0.95),
    },
    Claim {
        id: "minimum-is-lowest",
        statement: "In a random plane no point has a lower training loss than the trained model, farther than 0.1 filter \
            lengths away (our threshold)",
        source: "Flatland",
        statistic: "distance of the lowest training loss of `plane` from the model, in steps",
        rule: Rule::MeanBelow(0.1),
    },
    Claim {
        id: "lowest-together",
        statement: "In a random plane the test loss is lowest where the training loss is, to 0.2 filter lengths (our threshold)",
        source: "Flatland",
        statistic: "distance between the points of lowest training and lowest test loss of `plane`, in steps",
        rule: Rule::MeanBelow(0.2),
    },
    Claim {
        id: "minima-apart",
        statement: "Between three independent minima the training loss rises above all of them",
        source: "Garipov et al. 2018",
        statistic: "training loss at the centroid of the three minima minus the highest of theirs (nats)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "two-components",
        statement: "Between 40 % and 90 % of the variation of the way of training lies in two dimensions",
        source: "Li et al. 2018",
        statistic: "share of the variance of the snapshots that their first two principal components hold (fraction)",
        rule: Rule::MeanWithin(0.4, 0.9),
    },
];

/// Claims about surfaces that were not looked at, or from whose grid they cannot be read, are left out.
fn judge(measures: &[Measure]) -> Vec<Outcome> {
    let of = |kind: Kind, name: &str, split: &str| {
        let mine = measures.iter().filter(|m| m.kind == kind && m.name == name && m.split == split);
        mine.filter_map(|measure| measure.value).collect::<Vec<f64>>()
    };
    let values = [
        of(Kind::Plane, "rank_correlation", "both"),
        of(Kind::Plane, "lowest_from_model", "train"),
        of(Kind::Plane, "lowest_apart", "both"),
        of(Kind::Minima, "centroid_rise", "train"),
        of(Kind::Pca, "explained_by_two", "train"),
    ];
    let there = CLAIMS.iter().zip(values).filter(|(_, values)| !values.is_empty());
    there.map(|(claim, values)| claim.judge(&values)).collect()
}

/// A row a surface; means over the seeds.
fn closing_table(settings: &Settings, measures: &[Measure]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "surface",
        "train loss",
        "test loss",
        "train rise at 0.5",
        "train rise at 1",
        "train and test ranks",
        "lowest train from lowest test",
    ]);
    for kind in settings.wanted() {
        let value = |names: &[&str], split: &str, decimals: usize| {
            let mine = |m: &&Measure| m.kind == kind && names.contains(&m.name) && m.split == split;
            let values: Vec<f64> = measures.iter().filter(mine).filter_map(|measure| measure.value).collect();
            mean_number(&values, 1., decimals, "")
        };
        let models = ["loss_at_model", "loss_at_highest_minimum", "loss_at_end"];
        table.add_row([
            kind.to_string(),
            value(&models, "train", 4),
            value(&models, "test", 4),
            value(&["mean_rise_0.5"], "train", 3),
            value(&["mean_rise_1"], "train", 3),
            value(&["rank_correlation"], "both", 4),
            value(&["lowest_apart"], "both", 3),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatland_statistics::Verdict;
    use ndarray::array;

    /// The plane or line of `of(x, y)` over [-1, 1], which is the training loss; the test loss is that a step to the right.
    fn surface(kind: Kind, points: usize, of: impl Fn(f64, f64) -> f64) -> Surface {
        let theta = Tensor::from_slice(&[0f32, 0.]);
        let axes = [Tensor::from_slice(&[1., 0.]), Tensor::from_slice(&[0., 1.])];
        let (count, x) = (if kind == Kind::Line { 1 } else { 2 }, even_grid(-1., 1., points).unwrap());
        let y = if count == 1 { vec![0.] } else { x.clone() };
        let step = x[1] - x[0];
        let both = |x: f64, y: f64| {
            let at = |loss| Evaluation { loss, accuracy: None };
            Both { train: at(of(x, y)), test: at(of(x - step, y)) }
        };
        let points =
            y.iter().flat_map(|&y| x.iter().map(move |&x| (x, y))).map(|(x, y)| both(x, y)).collect();
        let marks = vec![Mark { name: "model".into(), at: [0., 0.], theta: theta.shallow_clone() }];
        let subspace = Subspace::new(&theta, &axes[..count]).unwrap();
        let place = Place { kind, seed: 0, subspace, x, y, marks, explained: None };
        Surface { place, points, marks: vec![both(0., 0.)], tested: true, loss: Loss::CrossEntropy }
    }

    fn value(measures: &[Measure], name: &str, split: &str) -> Option<f64> {
        measures.iter().find(|m| m.name == name && m.split == split).unwrap().value
    }

    #[test]
    fn measures_of_a_known_bowl() {
        let bowl = |x: f64, y: f64| 1. + x * x + 2. * y * y;
        let plane = surface(Kind::Plane, 41, bowl).measures();
        let close = |name: &str, expected: f64| {
            let found = value(&plane, name, "train").unwrap();
            // Straight lines lie above a bowl, by an eighth of its curvature times the squared step.
            assert!((0. ..0.003).contains(&(found - expected)), "{name}: {found}");
        };
        close("mean_rise_0.5", 1.5 * 0.25);
        close("largest_rise_0.5", 2. * 0.25);
        close("mean_rise_1", 1.5);
        close("lowest_loss", 1.);
        close("lowest_from_model", 0.);
        assert!((value(&plane, "lowest_apart", "both").unwrap() - 0.05).abs() < 1e-12, "a step");
        assert!(value(&plane, "rank_correlation", "both").unwrap() > 0.98);

        let line = surface(Kind::Line, 21, |x, _| 1. + x * x + 0.1 * x).measures();
        assert!((value(&line, "mean_rise_1", "train").unwrap() - 1.).abs() < 1e-12);
        assert!((value(&line, "largest_rise_1", "train").unwrap() - 1.1).abs() < 1e-12);
        // x² + 0.1 x is as low at -0.1 as at 0, in exact numbers.
        assert!(value(&line, "lowest_from_model", "train").unwrap() < 0.1 + 1e-12);
    }

    #[test]
    fn what_lies_outside_or_is_not_finite_is_no_number() {
        let mut short = surface(Kind::Line, 5, |x, _| x * x);
        short.place.x = even_grid(-0.7, 0.7, 5).unwrap();
        let measures = short.measures();
        assert!(value(&measures, "mean_rise_0.5", "train").is_some());
        assert_eq!(value(&measures, "mean_rise_1", "train"), None);
        let torn = surface(Kind::Plane, 5, |x, _| if x > 0.6 { f64::INFINITY } else { x * x });
        let measures = torn.measures();
        assert!(value(&measures, "mean_rise_0.5", "train").unwrap().is_finite());
        assert_eq!(value(&measures, "mean_rise_1", "train"), Some(f64::INFINITY));
        assert_eq!(value(&measures, "lowest_loss", "train"), Some(0.));
        let diverged = surface(Kind::Plane, 5, |_, _| f64::NAN).measures();
        assert_eq!(value(&diverged, "lowest_loss", "train"), None);
        assert_eq!(value(&diverged, "rank_correlation", "both"), None);
        assert!(value(&diverged, "mean_rise_1", "train").unwrap().is_nan());
    }

    #[test]
    fn places_between_points_are_found() {
        let places = [-1., 0., 1.];
        assert_eq!(between(&places, -1.), Some((0, 0.)));
        assert_eq!(between(&places, 0.), Some((1, 0.)));
        assert_eq!(between(&places, 0.25), Some((1, 0.25)));
        assert_eq!(between(&places, 1.), Some((1, 1.)));
        assert_eq!(between(&places, 1.1), None);
        assert_eq!(between(&places, f64::NAN), None);
    }

    #[test]
    fn heights_are_finite_and_half_as_high_as_wide() {
        let logs = array![[0., 1., 2.], [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]];
        assert_eq!(relief(&logs, 8.), array![[0., 2., 4.], [4., 4., 0.]]);
        assert_eq!(relief(&array![[f64::NAN, f64::NAN]], 2.), array![[0., 0.]]);
        assert_eq!(relief(&array![[3., 3.]], 2.), array![[0., 0.]]);
    }

    #[test]
    fn claims_are_about_what_was_looked_at() {
        let seed =
            |shift: f64| surface(Kind::Plane, 21, move |x, y| 1. + x * x + y * y + 1e-3 * shift).measures();
        let all: Vec<Measure> = (0..4).flat_map(|k| seed(f64::from(k))).collect();
        let outcomes = judge(&all);
        let ids: Vec<&str> = outcomes.iter().map(|outcome| outcome.claim.id).collect();
        assert_eq!(ids, ["surfaces-alike", "minimum-is-lowest", "lowest-together"]);
        // All seeds agree: the interval is a point, on one side of its threshold.
        assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::Supported));
        assert!(judge(&surface(Kind::Line, 5, |x, _| x * x).measures()).is_empty());
        let one = judge(&seed(0.));
        assert!(one.iter().all(|outcome| outcome.verdict == Verdict::Inconclusive));
    }

    fn settings(arguments: &[&str]) -> Result<Settings> {
        let words = [&["landscape"], arguments].concat();
        let matches =
            crate::command::Arguments::command_with(Landscape::FLAGS).try_get_matches_from(words)?;
        let arguments = crate::command::Arguments::read(&matches, Landscape::FLAGS)?;
        Ok(crate::settings::resolve(Landscape::PRESETS, &arguments)?)
    }

    #[test]
    fn what_is_given_decides_what_is_looked_at() {
        use Kind::{Line, Minima, Pca, Plane};
        let wanted = |arguments: &[&str]| {
            let settings = settings(arguments).unwrap();
            Landscape::check(&settings).unwrap();
            (settings.wanted(), settings.draws())
        };
        assert_eq!(wanted(&[]), (vec![Line, Plane, Minima, Pca], 3));
        assert_eq!(wanted(&["--preset", "fine"]), (vec![Plane], 1));
        assert_eq!(wanted(&["--surface", "pca", "--surface", "line"]), (vec![Pca, Line], 1));
        assert_eq!(wanted(&["--weights", "a"]).0, [Line, Plane]);
        let three = ["--weights", "a", "--weights", "b", "--weights", "c"];
        assert_eq!(wanted(&three).0, [Line, Plane, Minima]);
        let trials = settings(&["--seeds", "2"]).unwrap().trials();
        let snapshots: Vec<bool> = trials.iter().map(|trial| trial.snapshots).collect();
        assert_eq!(snapshots, [true, false, false, true, false, false]);
        assert!(trials[0].stream != trials[1].stream && trials[0].stream == trials[3].stream);
    }
}
