//! Can a network fit random labels, and how long does it take? LeNet on corrupted labels and pixels (Zhang et al. 2017,
//! "Understanding deep learning requires rethinking generalization").
//!
//! Two settings: the report's, which is too short to memorise 60,000 labels, and one at which LeNet can memorise. Test
//! labels stay true.

use crate::curves::{CURVES, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{ImageSettings, Images, PixelData};
use crate::run::Run;
use crate::summary::{mean_number, series, subtitle, thousands};
use crate::trial::{EpochRow, Trained, Trial, stream_of, train_all};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::{DataSetName, Split, gaussian_images, permutation, randomise_pixels, shuffle_pixels};
use flatland_network::streams::{Purpose, stream};
use flatland_network::{Evaluation, Examples, Network, OptimiserSettings, Training};
use flatland_record::{Axis, Cell, Colour, Figure, Marker, Panel, Series, Table, cells};
use flatland_statistics::{Claim, LEVEL, Outcome, Rule, mean_interval};
use ndarray::s;
use serde::{Deserialize, Serialize};

/// `configs/random-labels.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub images: ImageSettings,
    pub report: Report,
    pub memorise: Memorise,
}

/// All images, as many epochs as the report has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Report {
    pub labels: f64,
    pub batch: i64,
    pub epochs: u32,
    pub optimiser: OptimiserSettings,
}

/// Some images, until they are memorised.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Memorise {
    pub train: usize,
    pub batch: i64,
    pub epochs: u32,
    pub stop_at: f64,
    pub optimiser: OptimiserSettings,
    pub variants: Vec<Variant>,
}

/// One way to corrupt the examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Variant {
    pub name: String,
    pub labels: f64,
    pub pixels: Pixels,
}

/// What becomes of the pixels, in training and test images alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pixels {
    /// Nothing.
    True,
    /// One permutation for all images.
    Shuffled,
    /// A permutation for each image.
    Random,
    /// Noise.
    Gaussian,
}

impl Pixels {
    fn name(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::Shuffled => "shuffled",
            Self::Random => "random",
            Self::Gaussian => "gaussian",
        }
    }
}

impl Variant {
    /// For names of files and preparations.
    fn content(&self) -> String {
        format!("labels{}-{}pixels", self.labels, self.pixels.name())
    }
}

/// A variant of one seed, trained.
struct Memorised<'a> {
    variant: &'a Variant,
    seed: u64,
    /// Share of the training labels that are not the true ones.
    wrong: f64,
    stop_at: f64,
    trained: Trained,
}

impl Memorised<'_> {
    /// The epoch whose training accuracy reached the goal, if one did.
    fn reached(&self) -> Option<u32> {
        let reaches = |row: &&EpochRow| row.train.accuracy.is_some_and(|accuracy| accuracy >= self.stop_at);
        self.trained.curve.iter().find(reaches).map(|row| row.epoch)
    }

    /// The same, or where none did, as many as there were: fewer than it would take.
    fn epochs(&self) -> f64 {
        self.trained.curve.last().map_or(f64::NAN, |row| f64::from(self.reached().unwrap_or(row.epoch)))
    }

    /// Test error minus training error, with the final weights.
    fn gap(&self) -> f64 {
        accuracy(self.trained.end.train) - accuracy(self.trained.end.test)
    }
}

fn accuracy(value: Evaluation) -> f64 {
    value.accuracy.unwrap_or(f64::NAN)
}

/// The experiment.
#[derive(Debug)]
pub struct RandomLabels;

impl Experiment for RandomLabels {
    const NAME: &'static str = "random-labels";
    const ABOUT: &'static str = "Can a network fit random labels? LeNet on corrupted labels and pixels: \
        how long until it has memorised them, and what it knows of true ones then.";
    const EXAMPLES: &'static str = "Examples:
  random-labels --preset quick --dataset digits    a quarter of a minute, no files needed
  random-labels --seeds 5                          the report's setting, and memorising, with error bars
  random-labels --set report.epochs=1 --set memorise.train=2000
  random-labels --resume                           after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 131.), ("quick", 10.)];
    const PRESETS: &'static str = include_str!("../../../configs/random-labels.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        let Settings { images, report, memorise, .. } = settings;
        let most = images.preparation().most();
        images.preparation().check()?;
        ensure!(report.epochs > 0, "report.epochs must be at least 1, found 0");
        check_share("report.labels", report.labels)?;
        report.optimiser.check().context("report.optimiser")?;
        Training::check_batch(report.batch, most).context("report.batch")?;
        ensure!(memorise.epochs > 0, "memorise.epochs must be at least 1, found 0");
        ensure!(
            (1..=most).contains(&(memorise.train as i64)),
            "memorise.train must lie between 1 and the {most} training images, found {}",
            memorise.train
        );
        check_share("memorise.stop_at", memorise.stop_at)?;
        memorise.optimiser.check().context("memorise.optimiser")?;
        Training::check_batch(memorise.batch, memorise.train as i64).context("memorise.batch")?;
        ensure!(!memorise.variants.is_empty(), "memorise.variants must name at least one, found none");
        for (index, variant) in memorise.variants.iter().enumerate() {
            check_share(&format!("labels of variant {:?}", variant.name), variant.labels)?;
            // Tables and figures tell variants apart by name, files by content.
            let same = |other: &&Variant| other.name == variant.name || other.content() == variant.content();
            if let Some(other) = memorise.variants[..index].iter().find(same) {
                anyhow::bail!(
                    "memorise.variants must differ in name and content, found {:?} and {:?}",
                    other.name,
                    variant.name
                );
            }
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let data = PixelData::load(run, settings.dataset, settings.images.preparation())?;
        let truth = data.images(run, &data.train, &data.test, data.prepared.clone())?;
        let network = [Network::lenet()];
        let (mut reported, mut memorised) = (Vec::new(), Vec::new());
        // One seed after the other: each has images of its own in memory.
        for seed in Self::seeds(settings) {
            let (images, wrong) = corrupted(settings, run, &data, &truth, seed)?;
            let mut trained = train_all(run, &network, &images, &settings.trials(seed))?.into_iter();
            reported.extend(trained.next());
            let variants = settings.memorise.variants.iter().zip(wrong);
            memorised.extend(variants.zip(trained).map(|((variant, wrong), trained)| Memorised {
                variant,
                seed,
                wrong,
                stop_at: settings.memorise.stop_at,
                trained,
            }));
        }

        let table = report_table(settings, &reported)?;
        run.write_table("report", &table, "the report's setting: loss and accuracy by epoch")?;
        run.write_table("training", &training_table(&memorised)?, "memorising: loss and accuracy by epoch")?;
        run.write_table(
            "memorisation",
            &memorisation_table(&memorised)?,
            "epochs needed, and the end, by variant",
        )?;
        let figure = report_figure(settings, run, &reported);
        run.write_figure("report", &figure, "training curves at the report's setting")?;
        run.write_figure(
            "training",
            &training_figure(settings, run, &memorised),
            "training curves of the variants",
        )?;
        let figure = memorisation_figure(settings, run, &memorised);
        run.write_figure("memorisation", &figure, "epochs needed and errors at the end, by variant")?;
        run.write_claims(judge(settings, &reported, &memorised))?;
        Ok(closing_table(settings, &reported, &memorised))
    }
}

fn check_share(key: &str, share: f64) -> Result<()> {
    ensure!((0. ..=1.).contains(&share), "{key} must lie between 0 and 1, found {share}");
    Ok(())
}

impl Settings {
    /// The report's setting, then each variant; images in the same order.
    fn trials(&self, seed: u64) -> Vec<Trial> {
        let Self { report, memorise, .. } = self;
        let reported = Trial {
            name: format!("seed{seed}-report"),
            network: 0,
            images: 0,
            seed,
            stream: stream_of("report"),
            optimiser: report.optimiser,
            batch: report.batch,
            epochs: report.epochs,
            stop_at: None,
            snapshots: false,
        };
        let memorising = memorise.variants.iter().enumerate().map(|(index, variant)| Trial {
            name: format!("seed{seed}-{}", variant.content()),
            images: index + 1,
            // One for all: variants differ in their examples alone.
            stream: stream_of("memorise"),
            optimiser: memorise.optimiser,
            batch: memorise.batch,
            epochs: memorise.epochs,
            stop_at: Some(memorise.stop_at),
            snapshots: false,
            ..reported.clone()
        });
        std::iter::once(reported.clone()).chain(memorising).collect()
    }

    /// The values of each variant, a seed each.
    fn by_variant<'a>(&'a self, all: &'a [Memorised<'a>]) -> Vec<(&'a Variant, Vec<&'a Memorised<'a>>)> {
        let of = |variant: &'a Variant| all.iter().filter(|one| one.variant == variant).collect();
        self.memorise.variants.iter().map(|variant| (variant, of(variant))).collect()
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        subtitle::<RandomLabels>(self, run, &format!("LeNet on {}", self.dataset), more)
    }

    /// `10,000 images, batch 50, at most 150 epochs`.
    fn memorising(&self) -> String {
        let Memorise { train, batch, epochs, .. } = self.memorise;
        let train = thousands(train as i64);
        format!("{train} images, batch {batch}, at most {epochs} epochs")
    }
}

/// What the random streams of a seed are for; the first is [`PixelData::random_labels`]'s.
#[derive(Clone, Copy)]
enum Noise {
    Permutation = 1,
    Train,
    Test,
}

/// The images of the report's setting and of each variant, and of each variant the share of wrong labels.
fn corrupted(
    settings: &Settings,
    run: &Run,
    data: &PixelData,
    truth: &Images,
    seed: u64,
) -> Result<(Vec<Images>, Vec<f64>)> {
    let Settings { report, memorise, .. } = settings;
    let noise = |what: Noise| stream(seed, what as u32, 0, Purpose::Corruption);
    let prepared = |share: f64, pixels: Pixels| {
        let pixels = pixels.name();
        format!("{}; labels random with probability {share}, pixels {pixels}, by seed {seed}", data.prepared)
    };
    let all = data.random_labels(data.train.labels.len(), report.labels, seed);
    let mut images = vec![truth.relabelled(&all, prepared(report.labels, Pixels::True))?];
    let mut wrong = Vec::new();
    for variant in &memorise.variants {
        let labels = data.random_labels(memorise.train, variant.labels, seed);
        let differ = labels.iter().zip(&data.train.labels).filter(|(new, old)| new != old).count();
        wrong.push(differ as f64 / labels.len() as f64);
        let prepared = prepared(variant.labels, variant.pixels);
        let changed = |change: &dyn Fn(&mut Split, Noise)| -> Result<Images> {
            let first = data.train.images.slice(s![..labels.len(), .., ..]).to_owned();
            let mut train = Split { images: first, labels: labels.clone() };
            let mut test = data.test.clone();
            change(&mut train, Noise::Train);
            change(&mut test, Noise::Test);
            data.images(run, &train, &test, prepared.clone())
        };
        images.push(match variant.pixels {
            Pixels::True => truth.relabelled(&labels, prepared)?,
            Pixels::Shuffled => changed(&|split, _| {
                let (_, rows, columns) = split.images.dim();
                let order = permutation(rows * columns, &mut noise(Noise::Permutation));
                shuffle_pixels(&mut split.images, &order);
            })?,
            Pixels::Random => {
                changed(&|split, which| randomise_pixels(&mut split.images, &mut noise(which)))?
            }
            Pixels::Gaussian => {
                let examples = |labels: &[u8], which: Noise| {
                    let images = gaussian_images(labels.len(), 32, &mut noise(which));
                    Examples::images(&images, labels, run.device.device)
                };
                let train = examples(&labels, Noise::Train)?;
                Images { train, test: examples(&data.test.labels, Noise::Test)?, prepared }
            }
        });
    }
    Ok((images, wrong))
}

fn report_table(settings: &Settings, reported: &[Trained]) -> Result<Table> {
    let seeds = RandomLabels::seeds(settings).into_iter().map(|seed| vec![Cell::from(seed)]);
    curve_table(&["seed"], seeds.zip(reported.iter().map(|one| one.curve.as_slice())))
}

fn training_table(memorised: &[Memorised]) -> Result<Table> {
    let key = |one: &Memorised| cells![one.seed, one.variant.name.as_str()].to_vec();
    curve_table(&["seed", "variant"], memorised.iter().map(|one| (key(one), one.trained.curve.as_slice())))
}

fn memorisation_table(memorised: &[Memorised]) -> Result<Table> {
    let mut table = Table::new(&[
        "seed",
        "variant",
        "random_label_probability",
        "pixels",
        "wrong_label_fraction",
        "goal_accuracy",
        "reached",
        "epochs_to_goal",
        "epochs_trained",
        "train_loss_nats",
        "train_accuracy",
        "test_loss_nats",
        "test_accuracy",
        "error_gap",
    ]);
    for one in memorised {
        let (variant, end) = (one.variant, one.trained.end);
        table.row(cells![
            one.seed,
            variant.name.as_str(),
            variant.labels,
            variant.pixels.name(),
            one.wrong,
            one.stop_at,
            one.reached().is_some(),
            one.reached(),
            one.trained.curve.len(),
            end.train.loss,
            end.train.accuracy,
            end.test.loss,
            end.test.accuracy,
            one.gap()
        ])?;
    }
    Ok(table)
}

/// The mean over curves of a value at each epoch; where some have ended, over those that have not.
fn by_epoch(
    name: &str,
    colour: Colour,
    scale: f64,
    curves: &[&[EpochRow]],
    of: impl Fn(&EpochRow) -> f64,
) -> Series {
    let epochs = curves.iter().map(|curve| curve.len()).max().unwrap_or(0);
    let values = (0..epochs).filter_map(|epoch| {
        let values: Vec<f64> = curves.iter().filter_map(|curve| curve.get(epoch)).map(&of).collect();
        Some((epoch as f64 + 1., mean_interval(&values, LEVEL)?))
    });
    series(name, colour, scale, values)
}

/// Linear axes: everything happens close to what guessing gives.
fn report_figure(settings: &Settings, run: &Run, reported: &[Trained]) -> Figure {
    let curves: Vec<&[EpochRow]> = reported.iter().map(|one| one.curve.as_slice()).collect();
    let mut loss = Panel::new("loss", Axis::whole("epoch"), Axis::linear("cross-entropy (nats)"))
        .with_level(10_f64.ln(), "ln 10: guessing");
    let mut hits = Panel::new("accuracy", Axis::whole("epoch"), Axis::linear("accuracy (%)"))
        .with_level(10., "10 %: guessing");
    let names = ["train (random labels)", "test (true labels)"];
    for (((_, of), name), colour) in CURVES.into_iter().zip(names).zip([Colour::Blue, Colour::Vermillion]) {
        loss = loss.with(by_epoch(name, colour, 1., &curves, |row| of(row).loss));
        hits = hits.with(by_epoch(name, colour, 100., &curves, |row| accuracy(of(row))));
    }
    let Report { labels, batch, epochs, .. } = settings.report;
    let percent = 100. * labels;
    let more = format!("{percent} % random labels, batch {batch}, {epochs} epochs");
    Figure::new("LeNet on random labels, as in the report", settings.subtitle(run, &more), vec![loss, hits])
}

fn training_figure(settings: &Settings, run: &Run, memorised: &[Memorised]) -> Figure {
    let percent = |what: &str| Axis::linear(format!("{what} (%)")).with_range(0., 100.);
    let epoch = || Axis::whole("epoch");
    let goal = 100. * settings.memorise.stop_at;
    let title = format!("on the corrupted training examples, up to {goal} %");
    let mut fit = Panel::new(title, epoch(), percent("training accuracy")).with_level(goal, "");
    let mut test = Panel::new("on test examples with true labels", epoch(), percent("test accuracy"))
        .with_level(10., "guessing");
    for (index, (variant, all)) in settings.by_variant(memorised).into_iter().enumerate() {
        let curves: Vec<&[EpochRow]> = all.iter().map(|one| one.trained.curve.as_slice()).collect();
        let of = |of: fn(&EpochRow) -> Evaluation| {
            let curve = by_epoch(&variant.name, Colour::nth(index), 100., &curves, |row| accuracy(of(row)));
            if variant.pixels == Pixels::True { curve } else { curve.dashed() }
        };
        fit = fit.with(of(|row| row.train));
        test = test.with(of(|row| row.test));
    }
    let subtitle = settings.subtitle(run, &settings.memorising());
    Figure::new("LeNet memorising corrupted examples", subtitle, vec![fit, test])
}

/// Variants from top to bottom: how long each took, and how well it generalises at the end.
fn memorisation_figure(settings: &Settings, run: &Run, memorised: &[Memorised]) -> Figure {
    let variants: Vec<_> = settings.by_variant(memorised).into_iter().rev().collect();
    let names = || Axis::categories("", variants.iter().map(|(variant, _)| variant.name.as_str()));
    let along =
        |name: &str, colour: Colour, marker: Marker, scale: f64, of: &dyn Fn(&[&Memorised]) -> Vec<f64>| {
            let (mut points, mut whiskers) = (Vec::new(), Vec::new());
            for (index, (_, all)) in variants.iter().enumerate() {
                if let Some(interval) = mean_interval(&of(all), LEVEL) {
                    let (low, high) = interval.ends.unwrap_or((f64::NAN, f64::NAN));
                    points.push((scale * interval.mean, index as f64));
                    whiskers.push((scale * low, scale * high));
                }
            }
            Series::scatter(name, colour, points).with_marker(marker).with_x_whiskers(whiskers)
        };
    let goal = 100. * settings.memorise.stop_at;
    let needed = |all: &[&Memorised]| all.iter().filter_map(|one| one.reached().map(f64::from)).collect();
    let missed = |all: &[&Memorised]| {
        all.iter().filter(|one| one.reached().is_none()).map(|one| one.epochs()).collect()
    };
    let longest = memorised.iter().map(Memorised::epochs).fold(1., f64::max);
    let axis = Axis::whole(format!("epochs until {goal} % training accuracy")).with_range(0., 1.05 * longest);
    let mut epochs = Panel::new("how long memorising takes", axis, names()).with(along(
        "reached",
        Colour::Blue,
        Marker::Circle,
        1.,
        &needed,
    ));
    if memorised.iter().any(|one| one.reached().is_none()) {
        epochs = epochs.with(along("not reached in as many", Colour::Grey, Marker::Cross, 1., &missed));
    }
    let test = |all: &[&Memorised]| all.iter().map(|one| 1. - accuracy(one.trained.end.test)).collect();
    let gap = |all: &[&Memorised]| all.iter().map(|one| one.gap()).collect();
    let errors = Panel::new("what it is worth", Axis::linear("error (%)"), names())
        .with(along("test error", Colour::Vermillion, Marker::Square, 100., &test))
        .with(along(
            "generalisation gap: test minus training error",
            Colour::Green,
            Marker::Diamond,
            100.,
            &gap,
        ))
        .with_mark(90., "guessing");
    let subtitle = settings.subtitle(run, &settings.memorising());
    Figure::new("Memorising corrupted examples", subtitle, vec![epochs, errors])
}

/// Fixed before the data.
const CLAIMS: [Claim; 11] = [
    Claim {
        id: "loss-falls",
        statement: "On random labels, the training loss falls below that of guessing, ln 10",
        source: "report",
        statistic: "mean training loss in the last epoch of the report's setting (nats)",
        rule: Rule::MeanBelow(std::f64::consts::LN_10),
    },
    Claim {
        id: "test-guesses",
        statement: "Trained on random labels, the network guesses true ones: test accuracy is near 10 %",
        source: "report",
        statistic: "test accuracy at the end of the report's setting (fraction)",
        rule: Rule::MeanWithin(0.08, 0.12),
    },
    Claim {
        id: "train-1.952",
        statement: "After 100 epochs on MNIST the training loss is 1.952, give or take 0.05",
        source: "notebook",
        statistic: "mean training loss in epoch 100 (nats)",
        rule: Rule::MeanWithin(1.902, 2.002),
    },
    Claim {
        id: "test-2.666",
        statement: "After 100 epochs on MNIST the test loss against true labels is 2.666, give or take 0.05",
        source: "notebook",
        statistic: "test loss after epoch 100 (nats)",
        rule: Rule::MeanWithin(2.616, 2.716),
    },
    Claim {
        id: "memorises-labels",
        statement: "A network can memorise random labels",
        source: "Zhang et al. 2017",
        statistic: "1 if the training accuracy on random labels reaches the goal, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "memorises-noise",
        statement: "A network can memorise the labels of noise",
        source: "Zhang et al. 2017",
        statistic: "1 if the training accuracy on Gaussian pixels reaches the goal, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "random-slower",
        statement: "Random labels take longer to fit than true ones",
        source: "Zhang et al. 2017",
        statistic: "ln of the epochs to the goal with random labels over those with true ones (no unit)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "more-is-slower",
        statement: "The more labels are random, the longer fitting takes",
        source: "Zhang et al. 2017",
        statistic: "1 if the epochs to the goal rise from each share of random labels to the next, else 0",
        rule: Rule::ShareAbove(0.5),
    },
    Claim {
        id: "shuffled-easier",
        statement: "Pixels shuffled alike in all images are fitted sooner than pixels shuffled in each its own way",
        source: "Zhang et al. 2017",
        statistic: "ln of the epochs to the goal with random pixels over those with shuffled ones (no unit)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "noise-easier",
        statement: "Noise is fitted sooner than images with random labels",
        source: "Zhang et al. 2017",
        statistic: "ln of the epochs to the goal with random labels over those with Gaussian pixels (no unit)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "gap-grows",
        statement: "The generalisation gap grows with the share of random labels",
        source: "Zhang et al. 2017",
        statistic: "test minus training error at the end, at the largest share of random labels minus at the smallest \
                    (fractions)",
        rule: Rule::MeanAbove(0.),
    },
];

/// Where a run does not reach the goal, it counts with the epochs that it had, fewer than it would take. Claims about
/// variants that there are not are left out, and so are the notebook's numbers where the data or the epochs are others.
fn judge(settings: &Settings, reported: &[Trained], memorised: &[Memorised]) -> Vec<Outcome> {
    let Settings { dataset, images, report, memorise, .. } = settings;
    let last = |of: fn(&EpochRow) -> f64| -> Vec<f64> {
        reported.iter().filter_map(|one| one.curve.last().map(of)).collect()
    };
    let random = (report.labels >= 1.).then_some(());
    let notebooks = *dataset == DataSetName::Mnist && images.train == 0 && report.epochs == 100;
    let notebooks = random.filter(|()| notebooks);

    let seeds = RandomLabels::seeds(settings);
    let find = |fits: &dyn Fn(&Variant) -> bool| -> Option<Vec<&Memorised>> {
        let variant = memorise.variants.iter().find(|variant| fits(variant))?;
        Some(memorised.iter().filter(|one| one.variant == variant).collect())
    };
    let pixels = |pixels: Pixels| find(&|variant| variant.pixels == pixels && variant.labels == 0.);
    let labels =
        |share: f64| find(&|variant| variant.pixels == Pixels::True && (variant.labels - share).abs() < 1e-9);
    let (truth, all_random) = (labels(0.), labels(1.));
    let reached = |all: &Option<Vec<&Memorised>>| -> Option<Vec<f64>> {
        Some(all.as_ref()?.iter().map(|one| f64::from(u8::from(one.reached().is_some()))).collect())
    };
    let longer = |slow: &Option<Vec<&Memorised>>, fast: &Option<Vec<&Memorised>>| -> Option<Vec<f64>> {
        let pairs = slow.as_ref()?.iter().zip(fast.as_ref()?);
        Some(pairs.map(|(slow, fast)| (slow.epochs() / fast.epochs()).ln()).collect())
    };
    // By share of random labels, pixels true.
    let ladder = |seed: u64| -> Vec<&Memorised> {
        let mut all: Vec<&Memorised> =
            memorised.iter().filter(|one| one.seed == seed && one.variant.pixels == Pixels::True).collect();
        all.sort_by(|a, b| a.variant.labels.total_cmp(&b.variant.labels));
        all
    };
    let on_ladders = |of: &dyn Fn(&[&Memorised]) -> f64| -> Option<Vec<f64>> {
        let ladders: Vec<_> = seeds.iter().map(|&seed| ladder(seed)).collect();
        ladders
            .iter()
            .all(|ladder| ladder.len() > 1)
            .then(|| ladders.iter().map(|ladder| of(ladder)).collect())
    };
    let rises = |ladder: &[&Memorised]| {
        f64::from(u8::from(ladder.windows(2).all(|pair| pair[0].epochs() < pair[1].epochs())))
    };
    let widens = |ladder: &[&Memorised]| ladder[ladder.len() - 1].gap() - ladder[0].gap();

    let gaussian = pixels(Pixels::Gaussian);
    let values = [
        random.map(|()| last(|row| row.train.loss)),
        random.map(|()| last(|row| accuracy(row.test))),
        notebooks.map(|()| last(|row| row.train.loss)),
        notebooks.map(|()| last(|row| row.test.loss)),
        reached(&all_random),
        reached(&gaussian),
        longer(&all_random, &truth),
        on_ladders(&rises),
        longer(&pixels(Pixels::Random), &pixels(Pixels::Shuffled)),
        longer(&all_random, &gaussian),
        on_ladders(&widens),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

fn closing_table(settings: &Settings, reported: &[Trained], memorised: &[Memorised]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    let goal = format!("epochs to {} %", 100. * settings.memorise.stop_at);
    table.set_header([
        "examples",
        goal.as_str(),
        "train loss",
        "train accuracy",
        "test loss",
        "test accuracy",
    ]);
    let ends = |all: &[&EpochRow]| -> [String; 4] {
        let number = |of: &dyn Fn(&EpochRow) -> f64, scale, decimals, unit| {
            mean_number(&all.iter().map(|row| of(row)).collect::<Vec<_>>(), scale, decimals, unit)
        };
        [
            number(&|row| row.train.loss, 1., 4, ""),
            number(&|row| accuracy(row.train), 100., 2, " %"),
            number(&|row| row.test.loss, 1., 4, ""),
            number(&|row| accuracy(row.test), 100., 2, " %"),
        ]
    };
    let last: Vec<&EpochRow> = reported.iter().filter_map(|one| one.curve.last()).collect();
    let name = format!("the report's, {} epochs", settings.report.epochs);
    table.add_row([name, String::new()].into_iter().chain(ends(&last)));
    for (variant, all) in settings.by_variant(memorised) {
        let reached: Vec<f64> = all.iter().filter_map(|one| one.reached().map(f64::from)).collect();
        let epochs = match reached.len() {
            0 => format!("not in {}", settings.memorise.epochs),
            count if count == all.len() => mean_number(&reached, 1., 0, ""),
            count => format!("{} ({count} of {} seeds)", mean_number(&reached, 1., 0, ""), all.len()),
        };
        let last: Vec<&EpochRow> = all.iter().filter_map(|one| one.trained.curve.last()).collect();
        table.add_row([variant.name.clone(), epochs].into_iter().chain(ends(&last)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::Both;
    use flatland_statistics::Verdict;

    fn settings() -> Settings {
        let arguments = ["random-labels", "--seeds", "6"];
        let arguments = <crate::command::Arguments as clap::Parser>::parse_from(arguments);
        crate::settings::resolve(RandomLabels::PRESETS, &arguments).unwrap()
    }

    /// Reaches 99 % in epoch `reached`, or has 200 epochs without.
    fn trained(reached: Option<u32>, [train_loss, test_loss, test_accuracy]: [f64; 3]) -> Trained {
        let at = |loss, accuracy| Evaluation { loss, accuracy: Some(accuracy) };
        let test = at(test_loss, test_accuracy);
        let row = |epoch| {
            let fits = if reached == Some(epoch) { 0.99 } else { 0.5 };
            EpochRow { epoch, train: at(train_loss, fits), test, seconds: 1. }
        };
        let curve = (1..=reached.unwrap_or(200)).map(row).collect();
        Trained {
            theta: tch::Tensor::new(),
            snapshots: None,
            curve,
            end: Both { train: at(train_loss, 1.), test },
        }
    }

    #[test]
    fn claims_on_known_curves() {
        use Verdict::{Contradicted, Inconclusive, Supported};
        let settings = settings();
        let seeds = RandomLabels::seeds(&settings);
        // By variant, as the settings name them: 0, 25, 50, 75, 100 % random labels; shuffled, random, Gaussian pixels.
        let verdicts = |report: [f64; 3], epochs: [Option<u32>; 8]| -> Vec<(&str, Verdict)> {
            let reported: Vec<Trained> = seeds.iter().map(|_| trained(None, report)).collect();
            let one = |seed: u64, index: usize| Memorised {
                variant: &settings.memorise.variants[index],
                seed,
                wrong: 0.,
                stop_at: settings.memorise.stop_at,
                // Seeds differ a little.
                trained: trained(
                    epochs[index].map(|epochs| epochs + u32::from(seed == 1)),
                    [0.1, 1., 0.9 - 0.1 * index as f64],
                ),
            };
            let memorised: Vec<Memorised> = seeds
                .iter()
                .flat_map(|&seed| (0..8).map(move |index| (seed, index)))
                .map(|(s, i)| one(s, i))
                .collect();
            let outcomes = judge(&settings, &reported, &memorised);
            outcomes.iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
        };
        let rising = [Some(5), Some(20), Some(40), Some(60), Some(80), Some(10), Some(30), Some(50)];
        let notebooks = verdicts([1.952, 2.666, 0.1], rising);
        assert!(notebooks.iter().all(|(_, verdict)| *verdict == Supported), "{notebooks:?}");
        assert_eq!(notebooks.len(), CLAIMS.len());
        // Nothing but true labels is fitted, random labels are no slower than those, loss stays on the border.
        let ln_10 = std::f64::consts::LN_10;
        let failing = [Some(200), None, None, None, None, None, None, None];
        let expected = [
            ("loss-falls", Inconclusive),
            ("test-guesses", Contradicted),
            ("train-1.952", Contradicted),
            ("test-2.666", Inconclusive),
            ("memorises-labels", Contradicted),
            ("memorises-noise", Contradicted),
            ("random-slower", Inconclusive),
            ("more-is-slower", Contradicted),
            ("shuffled-easier", Inconclusive),
            ("noise-easier", Inconclusive),
            ("gap-grows", Supported),
        ];
        assert_eq!(verdicts([ln_10, 2.716, 0.2], failing), expected);
    }

    #[test]
    fn variants_that_cannot_be_told_apart_are_refused() {
        let mut settings = settings();
        settings.memorise.variants[1].labels = 0.;
        let said = RandomLabels::check(&settings).unwrap_err().to_string();
        assert!(said.contains("25 % random labels"), "{said}");
    }
}
