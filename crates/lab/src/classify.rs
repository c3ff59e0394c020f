//! Training on an actual task: three small convolutional networks, and what depth, parameters and seconds buy.

use crate::curves::{Group, curve_panels, curve_table};
use crate::experiment::{Experiment, check_seeds, seeds_from};
use crate::images::{Images, PixelSettings};
use crate::run::Run;
use crate::summary::{mean_number, points, series, subtitle, thousands};
use crate::trial::{SPLITS, Trained, Trial, stream_of, train_all};
use anyhow::{Context, Result, ensure};
use comfy_table::Table as ClosingTable;
use flatland_data::DataSetName;
use flatland_network::{Layer, Network, OptimiserSettings, Training};
use flatland_record::{Axis, Colour, Figure, Marker, Panel, Table, cells};
use flatland_statistics::{Claim, Interval, LEVEL, Outcome, Rule, mean_interval};
use serde::{Deserialize, Serialize};

/// `configs/classify.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub dataset: DataSetName,
    pub seeds: u64,
    pub seed: u64,
    pub epochs: u32,
    pub batch: i64,
    pub optimiser: OptimiserSettings,
    pub images: PixelSettings,
    pub models: Vec<Model>,
}

/// A convolutional network.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Model {
    pub name: String,
    pub channels: Vec<i64>,
}

impl Model {
    /// Convolutions 5x5 with padding 2, each with ReLU and 2x2 max-pooling, then one dense layer to the ten classes.
    fn network(&self) -> Result<Network> {
        let block = |&channels: &i64| {
            [Layer::Convolution { channels, kernel: 5, padding: 2 }, Layer::Relu, Layer::MaxPool { size: 2 }]
        };
        let blocks = self.channels.iter().flat_map(block);
        let layers: Vec<Layer> = blocks.chain([Layer::Dense { width: 10 }]).collect();
        Ok(Network::new(&self.channels(), &[1, 28, 28], &layers)?)
    }

    /// `16-32`.
    fn channels(&self) -> String {
        self.channels.iter().map(ToString::to_string).collect::<Vec<_>>().join("-")
    }
}

/// A model with everything that came out of it, a run a seed.
struct Results<'a> {
    model: &'a Model,
    parameters: i64,
    runs: Vec<&'a Trained>,
}

/// The experiment.
#[derive(Debug)]
pub struct Classify;

impl Experiment for Classify {
    const NAME: &'static str = "classify";
    const ABOUT: &'static str = "How well do three small convolutional networks learn, and what do their parameters and \
        their seconds buy? Loss and accuracy by epoch, training and test.";
    const EXAMPLES: &'static str = "Examples:
  classify --preset quick --dataset digits      a quarter of a minute, no files needed
  classify --seeds 5                            the report's settings with error bars
  classify --set 'models=[{name=\"thin\",channels=[4,8]},{name=\"wide\",channels=[32,64]}]'
  classify --resume                             after Ctrl-C or a crash";
    const SECONDS: &'static [(&'static str, f64)] = &[("paper", 63.), ("quick", 11.)];
    const PRESETS: &'static str = include_str!("../../../configs/classify.toml");
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<()> {
        check_seeds(settings.seeds)?;
        settings.images.image().check()?;
        ensure!(settings.epochs > 0, "epochs must be at least 1, found 0");
        ensure!(!settings.models.is_empty(), "models must name at least one network, found none");
        settings.optimiser.check().context("optimiser")?;
        Training::check_batch(settings.batch, settings.images.image().most()).context("batch")?;
        for (index, model) in settings.models.iter().enumerate() {
            // Tables and figures tell models apart by name.
            let taken = settings.models[..index].iter().any(|other| other.name == model.name);
            ensure!(!taken, "models must have different names, found {:?} twice", model.name);
            model.network().with_context(|| format!("model {:?}", model.name))?;
        }
        Ok(())
    }

    fn seeds(settings: &Settings) -> Vec<u64> {
        seeds_from(settings.seed, settings.seeds)
    }

    fn run(settings: &Settings, run: &Run) -> Result<ClosingTable> {
        let images = [Images::load(run, settings.dataset, settings.images.image())?];
        let networks = settings.models.iter().map(Model::network).collect::<Result<Vec<_>>>()?;
        let trials = settings.trials();
        let trained = train_all(run, &networks, &images, &trials)?;

        let seeds = Self::seeds(settings);
        let results: Vec<Results> = settings
            .models
            .iter()
            .zip(&networks)
            .zip(trained.chunks(seeds.len()))
            .map(|((model, network), runs)| Results {
                model,
                parameters: network.count(),
                runs: runs.iter().collect(),
            })
            .collect();
        run.write_table("training", &training_table(&seeds, &results)?, "loss and accuracy by epoch")?;
        run.write_table(
            "final",
            &final_table(&seeds, &results)?,
            "the trained models on all examples, each seed",
        )?;
        run.write_table(
            "timing",
            &timing_table(&seeds, &results)?,
            "seconds of training; they differ from run to run",
        )?;
        run.write_figure("training", &training_figure(settings, run, &results), "training curves")?;
        let figure = parameters_figure(settings, run, &results);
        run.write_figure("parameters", &figure, "accuracy against parameters")?;
        let figure = seconds_figure(settings, run, &results);
        run.write_figure(
            "seconds",
            &figure,
            "accuracy against seconds of training; it differs from run to run",
        )?;
        run.write_claims(judge(settings, &results))?;
        Ok(closing_table(&results))
    }
}

impl Settings {
    /// For each model, its seeds.
    fn trials(&self) -> Vec<Trial> {
        let seeds = Classify::seeds(self);
        let trial = |network: usize, model: &Model, seed: u64| Trial {
            name: format!("seed{seed}-{}", model.channels()),
            network,
            images: 0,
            seed,
            stream: stream_of(&model.channels()),
            optimiser: self.optimiser,
            batch: self.batch,
            epochs: self.epochs,
            stop_at: None,
            snapshots: false,
        };
        let models = self.models.iter().enumerate();
        models.flat_map(|(index, model)| seeds.iter().map(move |&seed| trial(index, model, seed))).collect()
    }

    fn subtitle(&self, run: &Run, more: &str) -> String {
        let subject = format!("convolutional networks on {}", self.dataset);
        subtitle::<Classify>(
            self,
            run,
            &subject,
            &format!("{} epochs, batch {} · {more}", self.epochs, self.batch),
        )
    }
}

impl Results<'_> {
    /// `model 1 (16-32), 28,938 parameters`.
    fn name(&self) -> String {
        format!("{} ({}), {} parameters", self.model.name, self.model.channels(), thousands(self.parameters))
    }

    /// A value of each seed's training, where it has one.
    fn values(&self, of: impl Fn(&Trained) -> Option<f64>) -> Vec<f64> {
        self.runs.iter().filter_map(|run| of(run)).collect()
    }

    fn interval(&self, of: impl Fn(&Trained) -> Option<f64>) -> Option<Interval> {
        mean_interval(&self.values(of), LEVEL)
    }
}

fn training_table(seeds: &[u64], results: &[Results]) -> Result<Table> {
    let curves = results.iter().flat_map(|result| {
        let key = |&seed: &u64| cells![seed, result.model.name.as_str(), result.parameters].to_vec();
        seeds.iter().map(key).zip(result.runs.iter().map(|run| run.curve.as_slice()))
    });
    curve_table(&["seed", "model", "parameters"], curves)
}

fn final_table(seeds: &[u64], results: &[Results]) -> Result<Table> {
    let columns = ["seed", "model", "channels", "parameters", "split", "loss_nats", "accuracy"];
    let mut table = Table::new(&columns);
    for result in results {
        for (&seed, run) in seeds.iter().zip(&result.runs) {
            for (split, of) in SPLITS {
                let value = of(&run.end);
                let name = result.model.name.as_str();
                table.row(cells![
                    seed,
                    name,
                    result.model.channels(),
                    result.parameters,
                    split,
                    value.loss,
                    value.accuracy
                ])?;
            }
        }
    }
    Ok(table)
}

fn timing_table(seeds: &[u64], results: &[Results]) -> Result<Table> {
    let mut table = Table::new(&["seed", "model", "parameters", "epoch", "training_seconds"]);
    for result in results {
        for (&seed, run) in seeds.iter().zip(&result.runs) {
            for row in &run.curve {
                let name = result.model.name.as_str();
                table.row(cells![seed, name, result.parameters, row.epoch, row.seconds])?;
            }
        }
    }
    Ok(table)
}

fn training_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let groups: Vec<Group> = results
        .iter()
        .enumerate()
        .map(|(index, result)| Group {
            name: result.name(),
            colour: Colour::nth(index),
            curves: result.runs.iter().map(|run| run.curve.as_slice()).collect(),
        })
        .collect();
    let subtitle = settings.subtitle(run, "train: mean over the epoch; test: after it");
    Figure::new("Convolutional networks in training", subtitle, curve_panels(&groups))
}

/// One point a model, and its training and test accuracy at the end.
fn parameters_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let mut panel = Panel::new("", Axis::log10("parameters"), Axis::linear("accuracy (%)"));
    let mut ordered: Vec<&Results> = results.iter().collect();
    ordered.sort_by_key(|result| result.parameters);
    let looks = [(Colour::Blue, Marker::Circle), (Colour::Vermillion, Marker::Square)];
    for ((split, of), (colour, marker)) in SPLITS.into_iter().zip(looks) {
        let values = ordered.iter().filter_map(|result| {
            Some((result.parameters as f64, result.interval(|run| of(&run.end).accuracy)?))
        });
        panel = panel.with(points(split, colour, 100., values).with_marker(marker));
    }
    let panel = ordered
        .iter()
        .fold(panel, |panel, result| panel.with_mark(result.parameters as f64, result.model.channels()));
    let subtitle = settings.subtitle(run, "with the final weights, over all examples");
    Figure::new("Accuracy against the number of parameters", subtitle, vec![panel])
}

/// Test accuracy after each epoch, over the mean seconds that the seeds had trained by then.
fn seconds_figure(settings: &Settings, run: &Run, results: &[Results]) -> Figure {
    let axis = Axis::linear("training time on one core (s)");
    let axis = if run.device.device == tch::Device::Cpu { axis } else { Axis::linear("training time (s)") };
    let mut panel = Panel::new("", axis, Axis::linear("test accuracy (%)"));
    for (index, result) in results.iter().enumerate() {
        let points = (0..settings.epochs as usize).filter_map(|epoch| {
            let seconds = result.interval(|run| Some(run.curve.get(epoch)?.seconds))?.mean;
            Some((seconds, result.interval(|run| run.curve.get(epoch)?.test.accuracy)?))
        });
        panel = panel.with(series(result.name(), Colour::nth(index), 100., points).with_points());
    }
    let subtitle = settings.subtitle(run, "a point an epoch");
    Figure::new("Test accuracy against training time", subtitle, vec![panel])
}

/// Fixed before the data.
const CLAIMS: [Claim; 5] = [
    Claim {
        id: "accuracy-16-32",
        statement: "Channels 16, 32 reach 98.17 % on MNIST's training images in epoch 5, give or take a point",
        source: "notebook",
        statistic: "mean training accuracy during epoch 5 (fraction)",
        rule: Rule::MeanWithin(0.9717, 0.9917),
    },
    Claim {
        id: "accuracy-6-32-32",
        statement: "Channels 6, 32, 32 reach 97.48 % on MNIST's training images in epoch 5, give or take a point",
        source: "notebook",
        statistic: "mean training accuracy during epoch 5 (fraction)",
        rule: Rule::MeanWithin(0.9648, 0.9848),
    },
    Claim {
        id: "accuracy-64",
        statement: "Channels 64 reach 98.56 % on MNIST's training images in epoch 5, give or take a point",
        source: "notebook",
        statistic: "mean training accuracy during epoch 5 (fraction)",
        rule: Rule::MeanWithin(0.9756, 0.9956),
    },
    Claim {
        id: "shallow-fits-best",
        statement: "The single wide convolution (64) fits the training images better than the deepest network (6, 32, 32)",
        source: "notebook",
        statistic: "training accuracy in the last epoch, 64 minus 6-32-32 (fractions)",
        rule: Rule::MeanAbove(0.),
    },
    Claim {
        id: "depth-generalises",
        statement: "Two convolutions (16, 32) classify test images better than one with four times the parameters (64)",
        source: "Flatland",
        statistic: "test accuracy at the end, 16-32 minus 64 (fractions)",
        rule: Rule::MeanAbove(0.),
    },
];

/// Claims about networks that were not trained are left out, and so are the notebook's numbers where the data are others.
fn judge(settings: &Settings, results: &[Results]) -> Vec<Outcome> {
    let find = |channels: &str| results.iter().find(|result| result.model.channels() == channels);
    let minus = |a: &str, b: &str, of: fn(&Trained) -> Option<f64>| -> Option<Vec<f64>> {
        let (a, b) = (find(a)?.values(of), find(b)?.values(of));
        Some(a.iter().zip(&b).map(|(a, b)| a - b).collect())
    };
    let notebooks =
        settings.dataset == DataSetName::Mnist && settings.images.train == 0 && settings.epochs >= 5;
    let in_epoch_5 = |channels: &str| -> Option<Vec<f64>> {
        notebooks.then_some(())?;
        Some(find(channels)?.values(|run| run.curve.get(4)?.train.accuracy))
    };
    let values = [
        in_epoch_5("16-32"),
        in_epoch_5("6-32-32"),
        in_epoch_5("64"),
        minus("64", "6-32-32", |run| run.curve.last()?.train.accuracy),
        minus("16-32", "64", |run| run.end.test.accuracy),
    ];
    CLAIMS.iter().zip(values).filter_map(|(claim, values)| Some(claim.judge(&values?))).collect()
}

fn closing_table(results: &[Results]) -> ClosingTable {
    let mut table = ClosingTable::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "model",
        "channels",
        "parameters",
        "train accuracy, last epoch",
        "train accuracy",
        "test accuracy",
        "seconds",
    ]);
    for result in results {
        let percent = |of: &dyn Fn(&Trained) -> Option<f64>| mean_number(&result.values(of), 100., 2, " %");
        table.add_row([
            result.model.name.clone(),
            result.model.channels(),
            thousands(result.parameters),
            percent(&|run| run.curve.last()?.train.accuracy),
            percent(&|run| run.end.train.accuracy),
            percent(&|run| run.end.test.accuracy),
            mean_number(&result.values(|run| Some(run.curve.last()?.seconds)), 1., 1, ""),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Both, EpochRow};
    use flatland_network::Evaluation;
    use flatland_statistics::Verdict;

    #[test]
    fn the_reports_networks_have_the_reports_parameters() {
        for (channels, expected) in [(&[16, 32][..], 28_938), (&[6, 32, 32], 33_510), (&[64], 127_114)] {
            let model = Model { name: "a".into(), channels: channels.to_vec() };
            assert_eq!(model.network().unwrap().count(), expected);
        }
    }

    fn trained(epoch_5: f64, test: f64) -> Trained {
        let at = |accuracy| Evaluation { loss: 0.1, accuracy: Some(accuracy) };
        let row = |epoch| EpochRow { epoch, train: at(epoch_5), test: at(test), seconds: 1. };
        Trained {
            theta: tch::Tensor::new(),
            snapshots: None,
            curve: (1..=5).map(row).collect(),
            end: Both { train: at(epoch_5), test: at(test) },
        }
    }

    #[test]
    fn claims_on_known_accuracies() {
        let settings: Settings = crate::settings::resolve(
            Classify::PRESETS,
            &<crate::command::Arguments as clap::Parser>::parse_from(["classify", "--seeds", "3"]),
        )
        .unwrap();
        // Model 1 within its point, model 2 on its border, model 3 outside.
        let runs = [[0.98, 0.981, 0.982], [0.9648, 0.9648, 0.9648], [0.96, 0.961, 0.962]]
            .map(|accuracies| accuracies.map(|accuracy| trained(accuracy, 1. - accuracy)));
        let results: Vec<Results> = settings
            .models
            .iter()
            .zip(&runs)
            .map(|(model, runs)| Results { model, parameters: 1, runs: runs.iter().collect() })
            .collect();
        let verdicts = |settings: &Settings| -> Vec<(&str, Verdict)> {
            judge(settings, &results).iter().map(|outcome| (outcome.claim.id, outcome.verdict)).collect()
        };
        let expected = [
            ("accuracy-16-32", Verdict::Supported),
            ("accuracy-6-32-32", Verdict::Inconclusive),
            ("accuracy-64", Verdict::Contradicted),
            ("shallow-fits-best", Verdict::Contradicted),
            ("depth-generalises", Verdict::Contradicted),
        ];
        assert_eq!(verdicts(&settings), expected);
        let other = Settings { dataset: DataSetName::Digits, ..settings.clone() };
        assert_eq!(verdicts(&other), expected[3..]);
    }
}
