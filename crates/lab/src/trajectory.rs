//! The optimisation process: snapshots of the weights of several runs, by principal components in one plane, and how alike the
//! runs are.
//!
//! Two planes have to be told apart.
//! - *All runs together*, as in the report: n independent runs lie about as far from one another in n - 1 directions that have
//!   little in common, so that a plane shows a part of what sets runs apart, and says little of the way that each one goes.
//! - *Each run on its own*, as the field has it (Lorch 2016, "Visualizing deep network training trajectories with PCA"; Li et
//!   al. 2018, "Visualizing the loss landscape of neural nets"). Two components hold most of the variance there, but so they
//!   do for a random walk in many dimensions, 61 and 15 %, whose projections are Lissajous curves (Antognini and
//!   Sohl-Dickstein 2018, "PCA of high dimensional random walks with comparison to neural network training"): bends and
//!   turns of a projection prove nothing, and shares are to be compared with the walk's.
//!
//! Distances and cosines are of weights as they are. Hidden units may come in any order, so that two runs far apart may still
//! compute nearly the same (Entezari et al. 2022, "The role of permutation invariance in linear mode connectivity").

use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, is_preset, seeds_from};
use crate::images::{Images, PixelSettings};
use crate::run::Run;
use crate::summary::{mean_number, series, subtitle, thousands};
use crate::trial::{Both, SPLITS, Trained, Trial, evaluate_all, stream_of, train_all};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_network::snapshot::{from_ndarray, to_ndarray_stacked};
use flatland_network::{Evaluation, Layer, Network, OptimiserSettings, Parameter, Training};
use flatland_record::{Axis, Cell, Colour, Figure, Marker, Panel, Series, Table, cells};
use flatland_statistics::{
    Claim, LEVEL, Outcome, Pca, PcaError, Rule, cosine, cosines, distance, distances, mean_interval,
};
use ndarray::{Array2, Axis as Dimension, concatenate};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use tch::Kind;

/// `configs/trajectory.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub batch: i64,
    pub hidden: Vec<i64>,
    pub layer: usize,
    pub biases: bool,
    pub every: u32,
    pub optimiser: OptimiserSettings,
    pub images: PixelSettings,
}

/// Which numbers of θ are looked at.
#[derive(Debug)]
struct Part {
    /// In tables and file names.
    id: String,
    /// In figures.
    name: String,
    /// Their places in θ.
    places: Vec<usize>,
}

/// The snapshots of all runs, seen in one part of θ.
#[derive(Debug)]
struct View {
    part: Part,
    /// Of all snapshots of all runs.
    together: Pca,
    /// By run and epoch, `[epochs + 1, k]` each: the snapshots in the components of `together`.
    scores: Vec<Array2<f64>>,
    /// By run: the components of its own snapshots; `None` for a run that stood still.
    alone: Vec<Option<Pca>>,
    /// By epoch, `[runs, runs]` each: cosines and distances between the runs.
    between: Vec<Likeness<Array2<f64>>>,
    /// By run and epoch: cosine and distance to its own start.
    from_start: Vec<Vec<Likeness<f64>>>,
}

/// How alike weights are.
#[derive(Debug)]
struct Likeness<T> {
    cosine: T,
    distance: T,
}

/// How many components are looked at, where there are so many.
const COMPONENTS: usize = 10;
/// In all snapshots: 1.6 GB of f64, of which there are two copies at a time.
const MOST_NUMBERS: u64 = 200_000_000;
/// More runs than this are no figure, and their pairs no table.
const MOST_SEEDS: u64 = 50;

/// The experiment.
#[derive(Debug)]
pub struct Trajectory;

impl Experiment for Trajectory {
    const NAME: &'static str = "trajectory";
    const ABOUT: &'static str = "Which way do weights go in training? The snapshots of several runs in the plane of their \
        principal components, whole model and one layer, and how alike the runs are.";
    const EXAMPLES: &'static str = "Examples:
  trajectory --preset quick --dataset digits       a few seconds, no files needed
  trajectory --preset notebook                     the notebook's learning rate instead of the report's
  trajectory --set layer=3 --set biases=true       the last layer beside the whole model, biases included
  trajectory --resume                              after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 62.), ("notebook", 37.), ("quick", 3.)];
    const PRESETS: &'static str = include_str!("../../../configs/trajectory.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        ensure!(
            settings.seeds <= MOST_SEEDS,
            "seeds must be at most {MOST_SEEDS}, since all pairs of runs are compared, found {}",
            settings.seeds
        );
        ensure!(
            (2..=10_000).contains(&settings.epochs),
            "epochs must lie between 2 and 10,000, found {}: a plane needs three snapshots",
            settings.epochs
        );
        ensure!(settings.every > 0, "every must be at least 1, found 0");
        let network = settings.network().context("hidden")?;
        let numbers = settings.seeds * u64::from(settings.epochs + 1) * network.count() as u64;
        ensure!(
            numbers <= MOST_NUMBERS,
            "snapshots hold seeds x (epochs + 1) x parameters numbers, at most {MOST_NUMBERS}, found {numbers}"
        );
        let layers = settings.hidden.len() + 1;
        ensure!(
            (1..=layers).contains(&settings.layer),
            "layer must lie between 1 and the {layers} layers that there are, found {}",
            settings.layer
        );
        settings.images.flat().check()?;
        settings.optimiser.check().context("optimiser")?;
        Training::check_batch(settings.batch, settings.images.flat().most()).context("batch")?;
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let images = Images::load(run, settings.dataset, settings.images.flat())?;
        let network = settings.network()?;
        let trained =
            train_all(run, std::slice::from_ref(&network), &[images.share()], &settings.trials(&network))?;
        let seeds = Self::seeds(settings);
        run.write_table("training", &training_table(&seeds, &trained)?, "loss and accuracy by epoch")?;
        run.write_figure("training", &training_figure(settings, run, &network, &trained), "training curves")?;

        let snapshots = snapshots_of(&trained)?;
        let evaluated = evaluate_snapshots(run, &network, &images, &snapshots)?;
        let views = settings
            .parts(&network)
            .into_iter()
            .map(|part| View::new(part, &snapshots))
            .collect::<Result<Vec<_>>>()?;
        run.write_table(
            "projection",
            &projection_table(&seeds, &views, &evaluated)?,
            "every snapshot in the plane, and its loss and accuracy",
        )?;
        run.write_table(
            "variance",
            &variance_table(&seeds, &views)?,
            "what each component explains, of all runs and of each on its own",
        )?;
        run.write_table(
            "similarity",
            &similarity_table(&seeds, &views)?,
            "cosine and distance of snapshots: two runs, or a run and its start",
        )?;
        for view in &views {
            let figure = projection_figure(settings, run, view, &evaluated);
            run.write_figure(
                &format!("projection_{}", view.part.id),
                &figure,
                &format!("the runs in one plane: {}", view.part.name),
            )?;
        }
        let figure = error_figure(settings, run, &views, &evaluated);
        run.write_figure("projection_error", &figure, "the same planes, coloured by training error")?;
        let figure = variance_figure(settings, run, &views);
        run.write_figure("variance", &figure, "explained variance by number of components")?;
        let figure = similarity_figure(settings, run, &views);
        run.write_figure("similarity", &figure, "how alike the runs are, by epoch")?;
        run.write_claims(judge(settings, &trained, &views[0]))?;
        Ok(closing_table(&trained, &views))
    }
}

impl Settings {
    fn widths(&self) -> Vec<i64> {
        [&[784], self.hidden.as_slice(), &[10]].concat()
    }

    fn network(&self) -> Result<Network> {
        Ok(Network::dense(&self.widths(), &Layer::Relu)?)
    }

    fn trials(&self, network: &Network) -> Vec<Trial> {
        let trial = |seed: u64| Trial {
            name: format!("seed{seed}-{}", network.name()),
            network: 0,
            images: 0,
            seed,
            stream: stream_of(network.name()),
            optimiser: self.optimiser,
            batch: self.batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: true,
        };
        Trajectory::seeds(self).into_iter().map(trial).collect()
    }

    /// The whole model, then the one layer.
    fn parts(&self, network: &Network) -> Vec<Part> {
        let part = |id: String, name: String, layer: Option<usize>| {
            let prefix = layer.map_or_else(|| "fc".to_owned(), |layer| format!("fc{layer}."));
            let chosen = |parameter: &&Parameter| {
                parameter.name.starts_with(&prefix) && (self.biases || parameter.name.ends_with(".weight"))
            };
            let places = network.parameters().iter().filter(chosen).flat_map(|parameter| {
                let from = parameter.offset as usize;
                from..from + parameter.count() as usize
            });
            Part { id, name, places: places.collect() }
        };
        let layer = self.layer;
        vec![
            part("whole".into(), "whole model".into(), None),
            part(format!("layer{layer}"), format!("layer {layer}"), Some(layer)),
        ]
    }

    /// The snapshots that are drawn.
    fn drawn(&self) -> Vec<usize> {
        let last = self.epochs as usize;
        let mut drawn: Vec<usize> = (0..last).step_by(self.every as usize).collect();
        drawn.push(last);
        drawn
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let widths: Vec<String> = self.widths().iter().map(ToString::to_string).collect();
        let subject = format!("{} on {}", widths.join("-"), self.dataset);
        subtitle::<Trajectory>(self, run, &subject, more)
    }

    /// The subtitle of a figure of weights.
    fn subtitle_of_weights(&self, run: &Run, more: &str) -> String {
        let what = if self.biases { "weights and biases" } else { "weights without biases" };
        self.subtitle(run, &format!("{what} · {more}"))
    }
}

impl View {
    /// `snapshots`: of each run, `[epochs + 1, P]`.
    fn new(part: Part, snapshots: &[Array2<f64>]) -> Result<Self> {
        let runs: Vec<Array2<f64>> =
            snapshots.iter().map(|theta| theta.select(Dimension(1), &part.places)).collect();
        let views: Vec<_> = runs.iter().map(Array2::view).collect();
        let all = concatenate(Dimension(0), &views)?;
        let together = components(&all).with_context(|| part.name.clone())?;
        let together = together.filter(|pca| pca.components.nrows() >= 2).with_context(|| {
            format!("{}: the snapshots vary in fewer than two directions, which is no plane", part.name)
        })?;
        let scores = runs.iter().map(|run| together.transform(run.view())).collect();
        let alone = runs.iter().map(components).collect::<Result<_, _>>()?;
        let epochs = runs[0].nrows();
        let between = (0..epochs).map(|epoch| {
            let rows: Vec<_> = runs.iter().map(|run| run.row(epoch).insert_axis(Dimension(0))).collect();
            let rows = concatenate(Dimension(0), &rows)?;
            Ok(Likeness { cosine: cosines(rows.view()), distance: distances(rows.view()) })
        });
        let between = between.collect::<Result<_>>()?;
        let from_start = runs.iter().map(|run| {
            let start = run.row(0);
            let to_start = |row| Likeness { cosine: cosine(start, row), distance: distance(start, row) };
            run.rows().into_iter().map(to_start).collect()
        });
        let from_start = from_start.collect();
        Ok(Self { part, together, scores, alone, between, from_start })
    }

    /// Of each run that moved: what its own first components explain, `count` of them together (0 to 1).
    fn own_shares(&self, count: usize) -> Vec<f64> {
        let share = |pca: &Pca| pca.explained_variance_ratio.iter().take(count).sum();
        self.alone.iter().flatten().map(share).collect()
    }

    /// A value of each of the pairs 0-1, 2-3, …: no run is in two of them, so that they are independent.
    fn of_pairs(&self, of: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..self.scores.len() / 2).map(|pair| of(2 * pair, 2 * pair + 1)).collect()
    }
}

/// The largest components, as many as there are up to [`COMPONENTS`]; `None` where nothing moves. Snapshots after a
/// divergence, which have no place, do not count.
fn components(rows: &Array2<f64>) -> Result<Option<Pca>, PcaError> {
    let finite = |&row: &usize| rows.row(row).iter().all(|x| x.is_finite());
    let rows = rows.select(Dimension(0), &(0..rows.nrows()).filter(finite).collect::<Vec<_>>());
    let most = COMPONENTS.min(rows.nrows().saturating_sub(1)).min(rows.ncols());
    if most == 0 {
        return Ok(None);
    }
    match Pca::fit(rows.view(), most) {
        Ok(pca) => Ok(Some(pca)),
        Err(PcaError::NoVariance(_) | PcaError::Rank { found: 0, .. }) => Ok(None),
        Err(PcaError::Rank { found, .. }) => Pca::fit(rows.view(), found).map(Some),
        Err(error) => Err(error),
    }
}

/// Share of the variance, 0 to 1, that the first `count` components of a random walk's `points` explain, in the limit of many
/// dimensions: the centred points' covariance is the pseudoinverse of a path's Laplacian, with the eigenvalues
/// 1 / (4 sin²(πk / 2n)), k = 1 to n - 1, and the trace (n² - 1) / 6 (for n → ∞, shares of 6 / (πk)²: Antognini and
/// Sohl-Dickstein 2018).
fn random_walk_share(points: usize, count: usize) -> f64 {
    let n = points as f64;
    let eigenvalue = |k: usize| 0.25 / (PI * k as f64 / (2. * n)).sin().powi(2);
    (1..=count.min(points - 1)).map(eigenvalue).sum::<f64>() / ((n * n - 1.) / 6.)
}

/// Of each run, `[epochs + 1, P]`.
fn snapshots_of(trained: &[Trained]) -> Result<Vec<Array2<f64>>> {
    let one = |trained: &Trained| {
        Ok(to_ndarray_stacked(trained.snapshots.as_ref().context("a trial came back without snapshots")?)?)
    };
    trained.iter().map(one).collect()
}

/// Loss and accuracy of each snapshot over all examples, by run and epoch.
fn evaluate_snapshots(
    run: &Run,
    network: &Network,
    images: &Images,
    snapshots: &[Array2<f64>],
) -> Result<Vec<Vec<Both>>> {
    let epochs = snapshots[0].nrows();
    let evaluated = evaluate_all(
        run,
        "evaluating the snapshots",
        (network, images),
        snapshots.len() * epochs,
        || Ok(()),
        |(), index| {
            let snapshot = snapshots[index / epochs].row(index % epochs).to_owned();
            Ok(from_ndarray(&snapshot, Kind::Float, run.device.device)?)
        },
        |index| format!("epoch {} of run {}", index % epochs, index / epochs + 1),
    )?;
    Ok(evaluated.chunks(epochs).map(<[Both]>::to_vec).collect())
}

fn training_table(seeds: &[u64], trained: &[Trained]) -> Result<Table> {
    let keys = seeds.iter().map(|&seed| cells![seed].to_vec());
    curve_table(&["seed"], keys.zip(trained.iter().map(|one| one.curve.as_slice())))
}

fn projection_table(seeds: &[u64], views: &[View], evaluated: &[Vec<Both>]) -> Result<Table> {
    let mut table = Table::new(&[
        "part",
        "seed",
        "epoch",
        "component_1",
        "component_2",
        "train_loss_nats",
        "train_accuracy",
        "test_loss_nats",
        "test_accuracy",
    ]);
    for view in views {
        for ((seed, scores), evaluated) in seeds.iter().zip(&view.scores).zip(evaluated) {
            for (epoch, (score, both)) in scores.rows().into_iter().zip(evaluated).enumerate() {
                let (train, test) = (both.train, both.test);
                table.row(cells![
                    view.part.id.as_str(),
                    *seed,
                    epoch,
                    score[0],
                    score[1],
                    train.loss,
                    train.accuracy,
                    test.loss,
                    test.accuracy
                ])?;
            }
        }
    }
    Ok(table)
}

/// All runs together have no seed.
fn variance_table(seeds: &[u64], views: &[View]) -> Result<Table> {
    let mut table = Table::new(&[
        "part",
        "seed",
        "component",
        "explained_variance",
        "explained_variance_ratio",
        "cumulative_ratio",
    ]);
    for view in views {
        let alone =
            seeds.iter().zip(&view.alone).filter_map(|(&seed, pca)| Some((Some(seed), pca.as_ref()?)));
        for (seed, pca) in std::iter::once((None, &view.together)).chain(alone) {
            let mut sum = 0.;
            let both = pca.explained_variance.iter().zip(&pca.explained_variance_ratio);
            for (index, (&variance, &ratio)) in both.enumerate() {
                sum += ratio;
                table.row(cells![view.part.id.as_str(), seed, index + 1, variance, ratio, sum])?;
            }
        }
    }
    Ok(table)
}

fn similarity_table(seeds: &[u64], views: &[View]) -> Result<Table> {
    let mut table = Table::new(&["part", "seed_a", "epoch_a", "seed_b", "epoch_b", "cosine", "distance"]);
    for view in views {
        let part = || Cell::from(view.part.id.as_str());
        for (epoch, likeness) in view.between.iter().enumerate() {
            for a in 0..seeds.len() {
                for b in a + 1..seeds.len() {
                    let values = [likeness.cosine[[a, b]], likeness.distance[[a, b]]];
                    table.row(cells![part(), seeds[a], epoch, seeds[b], epoch, values[0], values[1]])?;
                }
            }
        }
        for (&seed, likenesses) in seeds.iter().zip(&view.from_start) {
            for (epoch, likeness) in likenesses.iter().enumerate() {
                table.row(cells![part(), seed, 0, seed, epoch, likeness.cosine, likeness.distance])?;
            }
        }
    }
    Ok(table)
}

fn training_figure(settings: &Settings, run: &Run, network: &Network, trained: &[Trained]) -> Figure {
    let group = Group {
        name: network.name().to_owned(),
        colour: Colour::Blue,
        curves: trained.iter().map(|one| one.curve.as_slice()).collect(),
    };
    let more = format!("batch {} · train: mean over the epoch; test: after it", settings.batch);
    Figure::new("The runs in training", settings.subtitle(run, &more), curve_panels(&[group]))
}

/// A panel whose axes say what they explain.
fn plane(view: &View, title: &str) -> Panel {
    let axis = |index: usize| {
        let percent = 100. * view.together.explained_variance_ratio[index];
        Axis::linear(format!("component {} ({percent:.1} % of the variance)", index + 1))
    };
    Panel::new(title, axis(0), axis(1))
}

/// The drawn snapshots of a run.
fn path(settings: &Settings, scores: &Array2<f64>) -> Vec<(f64, f64)> {
    settings.drawn().into_iter().map(|epoch| (scores[[epoch, 0]], scores[[epoch, 1]])).collect()
}

/// Whether the `index`-th of `count` snapshots that are drawn gets a text: the first ones, between which most happens, then
/// ever fewer, and the last. Not the start, where all guess and their texts would lie in a heap.
fn has_text(index: usize, count: usize) -> bool {
    index + 1 == count || index.is_power_of_two() && 3 * index < 2 * count
}

/// One line a run, from its start to its end; some snapshots with their accuracy.
fn projection_figure(settings: &Settings, run: &Run, view: &View, evaluated: &[Vec<Both>]) -> Figure {
    let mut panel = plane(view, "");
    let drawn = settings.drawn();
    let runs = Trajectory::seeds(settings).into_iter().zip(&view.scores).zip(evaluated).enumerate();
    for (index, ((seed, scores), evaluated)) in runs {
        let texts = drawn.iter().enumerate().map(|(place, &epoch)| {
            let accuracy = evaluated[epoch].train.accuracy.filter(|_| has_text(place, drawn.len()));
            accuracy.map_or_else(String::new, |accuracy| format!("{:.0}", 100. * accuracy))
        });
        let series = Series::line(format!("seed {seed}"), Colour::Blue, path(settings, scores));
        let series = series.nth_look(index).with_marker(Marker::Circle).with_points();
        panel = panel.with(series.with_ends(Marker::Square, Marker::Star).with_labels(texts));
    }
    let every = match settings.every {
        1 => "a point an epoch".to_owned(),
        every => format!("a point every {every} epochs"),
    };
    let more = format!("{every}, from square to star · numbers: training accuracy (%)");
    let title = format!("The way of the weights: {}", view.part.name);
    let figure = Figure::new(title, settings.subtitle_of_weights(run, &more), vec![panel]);
    Figure { panel_size: Some((900., 640.)), ..figure }
}

/// The same planes, each point in the colour of its training error: on a log scale, since accuracies crowd below 100 %. The
/// starts, which only guess, would take up most of it, and are grey.
fn error_figure(settings: &Settings, run: &Run, views: &[View], evaluated: &[Vec<Both>]) -> Figure {
    let seeds = Trajectory::seeds(settings);
    let panels = views.iter().map(|view| {
        let mut panel = plane(view, &view.part.name).with_colour_bar(Axis::log10("training error (%)"));
        for ((seed, scores), evaluated) in seeds.iter().zip(&view.scores).zip(evaluated) {
            let points = path(settings, scores);
            let drawn = settings.drawn();
            let error = |&epoch: &usize| match epoch {
                0 => f64::NAN,
                epoch => 100. * (1. - evaluated[epoch].train.accuracy.unwrap_or(f64::NAN)),
            };
            let texts = (1..=points.len())
                .map(|place| if place == points.len() { format!("seed {seed}") } else { String::new() });
            let series = Series::line("", Colour::Grey, points.clone()).with_points();
            panel = panel.with(series.with_values(drawn.iter().map(error).collect()).with_labels(texts));
        }
        panel
    });
    let more = "a line a run, from its grey start to its name";
    Figure::new("Training error along the way", settings.subtitle_of_weights(run, more), panels.collect())
}

/// Left all runs together, right each on its own, with a random walk beside them.
fn variance_figure(settings: &Settings, run: &Run, views: &[View]) -> Figure {
    let panel = |title: &str| {
        let y = Axis::linear("explained variance, cumulative (%)").with_range(0., 100.);
        Panel::new(title, Axis::whole("components"), y)
    };
    let (mut together, mut alone) = (panel("all runs together"), panel("each run on its own"));
    for (index, view) in views.iter().enumerate() {
        let (name, colour) = (&view.part.name, Colour::nth(index));
        // The first layer holds nearly all weights: its line lies on the whole model's.
        let dash = |series: Series| if index > 0 { series.dashed() } else { series };
        let mut sum = 0.;
        let shares = view.together.explained_variance_ratio.iter().enumerate().map(|(component, ratio)| {
            sum += ratio;
            (component as f64 + 1., 100. * sum)
        });
        together = together.with(dash(Series::line(name, colour, shares.collect()).with_points()));
        let most = view.alone.iter().flatten().map(|pca| pca.components.nrows()).max().unwrap_or(0);
        let shares = (1..=most)
            .filter_map(|count| Some((count as f64, mean_interval(&view.own_shares(count), LEVEL)?)));
        alone = alone.with(dash(series(name, colour, 100., shares).with_points()));
    }
    let points = settings.epochs as usize + 1;
    let walk = (1..=COMPONENTS.min(points - 1))
        .map(|count| (count as f64, 100. * random_walk_share(points, count)))
        .collect();
    alone = alone.with(Series::line("random walk as long", Colour::Grey, walk).dotted());
    let more = "principal components of the snapshots of all epochs";
    Figure::new("What a plane can show", settings.subtitle_of_weights(run, more), vec![together, alone])
}

/// Means by epoch: solid over the pairs of runs that share none, dashed over the runs, to their own start.
fn similarity_figure(settings: &Settings, run: &Run, views: &[View]) -> Figure {
    let mut angle = Panel::new("direction", Axis::whole("epoch"), Axis::linear("cosine"));
    let mut apart = Panel::new("distance", Axis::whole("epoch"), Axis::linear("Euclidean distance"));
    for (index, view) in views.iter().enumerate() {
        let colour = Colour::nth(index);
        let over_epochs = |values: &dyn Fn(usize) -> Vec<f64>| {
            let epochs = (0..view.between.len())
                .filter_map(|epoch| Some((epoch as f64, mean_interval(&values(epoch), LEVEL)?)));
            epochs.collect::<Vec<_>>()
        };
        let name = format!("{}: two runs", view.part.name);
        let cosine = over_epochs(&|epoch| view.of_pairs(|a, b| view.between[epoch].cosine[[a, b]]));
        let distance = over_epochs(&|epoch| view.of_pairs(|a, b| view.between[epoch].distance[[a, b]]));
        angle = angle.with(series(&name, colour, 1., cosine));
        apart = apart.with(series(&name, colour, 1., distance));
        let name = format!("{}: a run and its start", view.part.name);
        let of_runs = |epoch: usize, of: fn(&Likeness<f64>) -> f64| {
            view.from_start.iter().map(|likenesses| of(&likenesses[epoch])).collect()
        };
        let cosine = over_epochs(&|epoch| of_runs(epoch, |likeness| likeness.cosine));
        let distance = over_epochs(&|epoch| of_runs(epoch, |likeness| likeness.distance));
        angle = angle.with(series(&name, colour, 1., cosine).dashed());
        apart = apart.with(series(&name, colour, 1., distance).dashed());
    }
    let pairs = settings.seeds / 2;
    let more = format!("two runs: {pairs} pairs that share no run");
    Figure::new("How alike the runs are", settings.subtitle_of_weights(run, &more), vec![angle, apart])
}

/// Fixed before the data.
const CLAIMS: [Claim; 5] = [
    Claim {
        id: "training-accuracy",
        statement: "At lr 0.01 the network reaches 97 % on MNIST's training images in epoch 32, give or take a point",
        source: "notebook",
        statistic: "mean training accuracy during epoch 32 (fraction)",
        rule: Rule::MeanWithin(0.96, 0.98),
    },
    Claim {
        id: "test-accuracy",
        statement: "At lr 0.01 the network reaches 95 % on MNIST's test images after epoch 32, give or take a point",
        source: "notebook",
        statistic: "test accuracy after epoch 32 (fraction)",
        rule: Rule::MeanWithin(0.94, 0.96),
    },
    Claim {
        id: "ends-apart",
        statement: "Independent runs do not come to one point: two ends are farther apart than either run has come",
        source: "Flatland",
        statistic: "of a pair of seeds (0-1, 2-3, …), all weights: distance of the ends over the longer distance from a \
            run's start to its end",
        rule: Rule::MeanAbove(1.),
    },
    Claim {
        id: "ends-orthogonal",
        statement: "The final weights of independent runs are nearly orthogonal: within 0.1 (our threshold) of a cosine of 0",
        source: "Fort et al. 2019",
        statistic: "of a pair of seeds (0-1, 2-3, …), all weights: cosine of the ends",
        rule: Rule::MeanWithin(-0.1, 0.1),
    },
    Claim {
        id: "more-than-a-random-walk",
        statement: "Two components of a run's own snapshots explain more than those of a random walk as long",
        source: "Flatland",
        statistic: "share of the variance that a run's two components explain, all weights, minus a random walk's",
        rule: Rule::MeanAbove(0.),
    },
];

/// `whole`: the whole model. The notebook's numbers are left out where its settings are not the ones that were run.
fn judge(settings: &Settings, trained: &[Trained], whole: &View) -> Vec<Outcome> {
    let notebooks =
        is_preset::<Trajectory>(settings, "notebook", &["seeds", "seed", "layer", "biases", "every"]);
    let in_epoch_32 = |of: fn(&Trained) -> Option<f64>| {
        notebooks.then(|| trained.iter().filter_map(of).collect::<Vec<_>>())
    };
    let last = settings.epochs as usize;
    let ends = &whole.between[last];
    let way = |run: usize| whole.from_start[run][last].distance;
    let walk = random_walk_share(last + 1, 2);
    let values = [
        in_epoch_32(|one| one.curve.get(31)?.train.accuracy),
        in_epoch_32(|one| one.curve.get(31)?.test.accuracy),
        Some(whole.of_pairs(|a, b| ends.distance[[a, b]] / way(a).max(way(b)))),
        Some(whole.of_pairs(|a, b| ends.cosine[[a, b]])),
        Some(whole.own_shares(2).iter().map(|share| share - walk).collect()),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

/// A column a part.
fn closing_table(trained: &[Trained], views: &[View]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    let names = views.iter().map(|view| view.part.name.clone());
    table.set_header(std::iter::once(String::new()).chain(names));
    let mut row = |name: &str, of: &dyn Fn(&View) -> String| {
        table.add_row(std::iter::once(name.to_owned()).chain(views.iter().map(of)));
    };
    let last = |view: &View| view.between.len() - 1;
    row("numbers in a snapshot", &|view| thousands(view.part.places.len() as i64));
    row("two components explain, all runs", &|view| {
        let ratio = &view.together.explained_variance_ratio;
        format!("{:.1} %", 100. * (ratio[0] + ratio[1]))
    });
    row("two components explain, each run", &|view| mean_number(&view.own_shares(2), 100., 1, " %"));
    row("distance from start to end", &|view| {
        let ways = view.from_start.iter().map(|run| run[last(view)].distance);
        mean_number(&ways.collect::<Vec<_>>(), 1., 2, "")
    });
    row("distance between two ends", &|view| {
        mean_number(&view.of_pairs(|a, b| view.between[last(view)].distance[[a, b]]), 1., 2, "")
    });
    row("cosine between two ends", &|view| {
        mean_number(&view.of_pairs(|a, b| view.between[last(view)].cosine[[a, b]]), 1., 3, "")
    });
    let accuracy = |of: fn(&Both) -> Evaluation| {
        let values: Vec<f64> = trained.iter().filter_map(|one| of(&one.end).accuracy).collect();
        mean_number(&values, 100., 2, " %")
    };
    for (name, of) in SPLITS {
        table.add_row([format!("{name} accuracy at the end"), accuracy(of)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::EpochRow;
    use flatland_network::Evaluation;
    use flatland_network::streams::{Purpose, stream};
    use flatland_statistics::Verdict;
    use ndarray::array;
    use rand::Rng;

    fn settings(arguments: &[&str]) -> Settings {
        let arguments = [&["trajectory"], arguments].concat();
        let arguments = <crate::command::Arguments as clap::Parser>::parse_from(arguments);
        crate::settings::resolve(Trajectory::PRESETS, &arguments).unwrap()
    }

    fn all(columns: usize) -> Part {
        Part { id: "whole".into(), name: "whole model".into(), places: (0..columns).collect() }
    }

    #[test]
    fn the_parts_are_those_of_the_report() {
        let count = |arguments: &[&str]| {
            let settings = settings(arguments);
            Trajectory::check(&settings).unwrap();
            let parts = settings.parts(&settings.network().unwrap());
            parts.iter().map(|part| part.places.len()).collect::<Vec<_>>()
        };
        assert_eq!(count(&[]), [784 * 16 + 16 * 14 + 14 * 10, 12_544]);
        assert_eq!(count(&["--set", "biases=true"]), [12_908 + 16 + 14 + 10, 12_544 + 16]);
        assert_eq!(count(&["--set", "layer=3"]), [12_908, 140]);
        // The second layer's weights lie behind the first one's weights and biases.
        let settings = settings(&["--set", "layer=2"]);
        let places = settings.parts(&settings.network().unwrap()).remove(1).places;
        assert_eq!((places[0], places.len()), (784 * 16 + 16, 16 * 14));
    }

    #[test]
    fn every_third_snapshot_is_drawn_and_the_last() {
        assert_eq!(settings(&[]).drawn(), [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 32]);
        assert_eq!(settings(&["--set", "epochs=6"]).drawn(), [0, 3, 6]);
        let texts: Vec<usize> = (0..12).filter(|&index| has_text(index, 12)).collect();
        assert_eq!(texts, [1, 2, 4, 11]);
    }

    #[test]
    fn random_walks_explain_what_the_formula_says() {
        let mut random = stream(0, 0, 0, Purpose::Order);
        let mut walk = Array2::from_shape_simple_fn((33, 20_000), || random.gen_range(-1.0..1.0));
        for row in 1..walk.nrows() {
            let before = walk.row(row - 1).to_owned();
            let mut here = walk.row_mut(row);
            here += &before;
        }
        let found = components(&walk).unwrap().unwrap().explained_variance_ratio;
        for count in 1..=COMPONENTS {
            let share = found.iter().take(count).sum::<f64>();
            assert!((share - random_walk_share(33, count)).abs() < 0.01, "{count}: {share}");
        }
        let all = random_walk_share(33, 32);
        assert!((all - 1.).abs() < 1e-12, "{all}");
        assert!((random_walk_share(100_000, 1) - 6. / (PI * PI)).abs() < 1e-9);
    }

    #[test]
    fn components_of_what_stands_still_or_diverges() {
        assert_eq!(components(&array![[1., 2.], [1., 2.], [1., 2.]]).unwrap(), None);
        assert_eq!(components(&array![[1., 2.], [f64::NAN, 2.]]).unwrap(), None);
        let line = components(&array![[0., 0.], [3., 4.], [f64::INFINITY, 0.], [6., 8.]]).unwrap().unwrap();
        assert_eq!(line.components.nrows(), 1);
        assert!((line.explained_variance[0] - 25.).abs() < 1e-9);
    }

    #[test]
    fn a_run_that_diverges_keeps_its_place_in_the_tables() {
        let runs = [array![[0., 0.], [1., 0.], [2., 1.]], array![[0., 1.], [1., 1.], [f64::NAN, f64::NAN]]];
        let view = View::new(all(2), &runs).unwrap();
        assert!(view.scores[1].row(2).iter().all(|score| score.is_nan()));
        assert!(view.scores[0].iter().all(|score| score.is_finite()));
        assert!(view.between[2].distance[[0, 1]].is_nan());
        assert!((view.between[1].distance[[0, 1]] - 1.).abs() < 1e-12);
        let still = [array![[1., 2.], [1., 2.], [1., 2.]]];
        let refusal = View::new(all(2), &still).unwrap_err().to_string();
        assert!(refusal.contains("fewer than two directions"), "{refusal}");
    }

    fn trained(train: f64, test: f64) -> Trained {
        let at = |accuracy| Evaluation { loss: 0.1, accuracy: Some(accuracy) };
        let row = |epoch| EpochRow { epoch, train: at(train), test: at(test), seconds: 1. };
        Trained {
            theta: tch::Tensor::new(),
            snapshots: None,
            curve: (1..=32).map(row).collect(),
            end: Both { train: at(train), test: at(test) },
        }
    }

    /// 33 snapshots on the straight line from one point to another.
    fn straight(from: &[f64], to: &[f64]) -> Array2<f64> {
        Array2::from_shape_fn((33, from.len()), |(epoch, column)| {
            from[column] + (to[column] - from[column]) * epoch as f64 / 32.
        })
    }

    /// What the claims say of four runs with these snapshots, each with an accuracy a little off.
    fn verdicts(settings: &Settings, train: f64, test: f64, runs: &[Array2<f64>]) -> Vec<Verdict> {
        let whole = View::new(all(runs[0].ncols()), runs).unwrap();
        let offsets = [0.0001, -0.0001, 0.0002, -0.0002];
        let trained: Vec<Trained> = offsets.iter().map(|off| trained(train + off, test + off)).collect();
        judge(settings, &trained[..runs.len()], &whole).iter().map(|outcome| outcome.verdict).collect()
    }

    fn unit(index: usize, length: f64) -> [f64; 4] {
        std::array::from_fn(|column| if column == index { length } else { 0. })
    }

    #[test]
    fn claims_on_known_runs() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let notebook = settings(&["--preset", "notebook"]);
        let apart: Vec<_> = (0..4).map(|run| straight(&unit(run, 1.), &unit(run, 3.))).collect();
        let found = verdicts(&notebook, 0.97, 0.95, &apart);
        assert_eq!(found, [Supported; 5]);
        // One point for all, accuracies off by two points, and snapshots without any order.
        let together: Vec<_> = (0..4).map(|run| straight(&unit(run, 1.), &[1.; 4])).collect();
        let found = verdicts(&notebook, 0.94, 0.93, &together);
        assert_eq!(found, [Contradicted, Contradicted, Contradicted, Contradicted, Supported]);
        let mut random = stream(0, 0, 0, Purpose::Order);
        let mut noise = || Array2::from_shape_simple_fn((33, 200), || random.gen_range(-1.0..1.0));
        let noise: Vec<_> = (0..4).map(|_| noise()).collect();
        assert_eq!(verdicts(&notebook, 0.97, 0.95, &noise)[4], Contradicted);
        // Accuracies on the border; ends as far apart as the longer way.
        let border = [
            straight(&[0., 0.], &[5., 0.]),
            straight(&[5., 2.], &[5., 5.]),
            straight(&[0., 0.], &[0., 5.]),
            straight(&[2., 5.], &[5., 5.]),
        ];
        let found = verdicts(&notebook, 0.98, 0.94, &border);
        assert_eq!(found, [Inconclusive, Inconclusive, Inconclusive, Contradicted, Supported]);
        // One run has nobody to be compared with; the text's learning rate is not the notebook's.
        assert_eq!(verdicts(&notebook, 0.97, 0.95, &noise[..1]), [Inconclusive; 5]);
        assert_eq!(verdicts(&settings(&[]), 0.97, 0.95, &apart), [Supported; 3]);
    }
}
