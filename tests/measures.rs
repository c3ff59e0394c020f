//! `measures` from its command line to its files: a small grid on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, files_in, header, number, rows};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const BINARY: &str = env!("CARGO_BIN_EXE_measures");

/// Two widths, two batch sizes, two seeds: eight models.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--network",
    "784-8-10",
    "--set",
    "images.train=200",
    "--set",
    "images.test=150",
    "--set",
    "batches=[10,40]",
    "--set",
    "lrs=[0.01]",
    "--set",
    "weight_decays=[0.0]",
    "--set",
    "stop_at_loss=0.3",
    "--set",
    "curvature_examples=30",
    "--set",
    "gradient_examples=20",
    "--set",
    "sensitivity_examples=30",
    "--set",
    "resamples=50",
    "--set",
    "noise.draws=3",
    "--set",
    "noise.examples=60",
];

const GRID: &[&str] = &["--seeds", "2", "--set", "widths=[1.0,2.0]"];

type Row = BTreeMap<String, String>;

/// Each model's measures.
fn by_model(measures: &[Row]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut models: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for row in measures {
        let values = models.entry(row["model"].clone()).or_default();
        assert_eq!(values.insert(row["measure"].clone(), row["value"].clone()), None);
    }
    models
}

/// From its definition, pair by pair.
fn tau(pairs: &[(f64, f64)]) -> f64 {
    let sign = |a: f64, b: f64| if a < b { -1. } else { f64::from(u8::from(a > b)) };
    let (mut sum, mut x, mut y) = (0., 0., 0.);
    for (i, a) in pairs.iter().enumerate() {
        for b in &pairs[..i] {
            let (s, t) = (sign(a.0, b.0), sign(a.1, b.1));
            sum += s * t;
            x += s * s;
            y += t * t;
        }
    }
    sum / f64::sqrt(x * y)
}

#[test]
fn tables_hold_every_measure_of_every_model_and_agree_with_each_other() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, GRID, &["--workers", "1"]]);
    let models = rows(&run, "models.csv");
    assert_eq!(models.len(), 2 * 2 * 2);
    assert!(models.iter().all(|row| row["reached_the_loss"] == "true"), "{models:?}");
    let catalogue = rows(&run, "catalogue.csv");
    let measures = rows(&run, "measures.csv");
    assert_eq!(
        header(&run, "measures.csv"),
        "model,seed,network,batch,lr,weight_decay,label_noise,reached_the_loss,error_gap,loss_gap_nats,family,\
         measure,value"
    );
    assert_eq!(measures.len(), models.len() * catalogue.len());
    let each = by_model(&measures);

    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs().max(1.), "{a} and {b}");
    for row in &models {
        close(number(row, "error_gap"), number(row, "train_accuracy") - number(row, "test_accuracy"));
        close(number(row, "loss_gap_nats"), number(row, "test_loss_nats") - number(row, "train_loss_nats"));
        let values = &each[&row["model"]];
        let of = |name: &str| number(values, name);
        assert_eq!(values["parameters"], row["parameters"]);
        assert_eq!(values["kernel_spectral_product"], "", "there is no convolution");
        // Quotients by the margin.
        close(of("path_over_margin"), of("path_norm") * of("inverse_margin"));
        close(of("spectral_over_margin"), of("spectral_product") + of("inverse_margin").ln());
        close(of("spectral_origin"), of("spectral_over_margin") + of("frobenius_over_spectral").ln());
        // PAC-Bayes from σ.
        let bound =
            |norm: f64| norm.powi(2) * of("flatness") / 4. + (200. * of("flatness").sqrt()).ln() + 10.;
        close(of("pac_bayes_origin"), bound(of("l2_norm")));
        close(of("pac_bayes_initial"), bound(of("l2_distance")));
        // A layer's ratio lies between 1 and its rank: 8 or 16, then at most 10.
        assert!(of("spectral_product") < of("frobenius_product"));
        assert!(of("frobenius_over_spectral") > 2. && of("frobenius_over_spectral") < 26.);
    }

    // τ and its interval, once over.
    let correlation = rows(&run, "correlation.csv");
    assert_eq!(correlation.len(), 2 * catalogue.len());
    for row in &correlation {
        if row["measure"] == "kernel_spectral_product" {
            assert_eq!((row["models"].as_str(), row["kendall_tau"].as_str()), ("0", ""));
            continue;
        }
        let gap = if row["gap"] == "error" { "error_gap" } else { "loss_gap_nats" };
        let pair = |model: &Row| (number(&each[&model["model"]], &row["measure"]), number(model, gap));
        let pairs: Vec<(f64, f64)> = models.iter().map(pair).collect();
        close(number(row, "kendall_tau"), tau(&pairs));
        assert!(number(row, "low") <= number(row, "high"));
    }
    let granulated = rows(&run, "granulated.csv");
    let varied: BTreeSet<&str> = granulated.iter().map(|row| row["hyperparameter"].as_str()).collect();
    assert_eq!(varied, BTreeSet::from(["network", "batch"]));

    assert_eq!(rows(&run, "claims.csv").len(), 8);
    for figure in ["correlation", "granulated", "scatter"] {
        let svg = fs::read_to_string(run.join(format!("{figure}.svg"))).unwrap();
        assert!(svg.contains("digits") && svg.contains("2 seeds") && !svg.contains("NaN"), "{figure}");
    }

    let other = Out::new(BINARY);
    let again = other.run(&[SMALL, GRID, &["--workers", "2"]]);
    let tables = ["models.csv", "measures.csv", "correlation.csv", "granulated.csv", "claims.csv"];
    assert_same_files(&run, &again, &tables);

    // The weights of a run, given: the same measures but for those of the way to them.
    let file =
        files_in(&run.join("weights")).into_iter().find(|path| path.to_string_lossy().contains("784-8-10"));
    let file = file.unwrap();
    let name = file.file_stem().unwrap().to_str().unwrap();
    let alone = out.run(&[SMALL, &["--weights", file.to_str().unwrap()]]);
    assert!(!alone.join("correlation.csv").exists() && !alone.join("claims.csv").exists());
    let given = &by_model(&rows(&alone, "measures.csv"))[name];
    let unknown = [
        "l2_distance",
        "spectral_distance",
        "spectral_initial",
        "pac_bayes_initial",
        "pac_bayes_magnitude_origin",
        "pac_bayes_magnitude_initial",
        "steps",
    ];
    for (measure, value) in &each[name] {
        let expected = if unknown.contains(&measure.as_str()) { "" } else { value };
        assert_eq!(given[measure], expected, "{measure}");
    }
}

#[test]
fn random_labels_are_a_hyperparameter_and_what_does_not_reach_the_loss_is_not_compared() {
    let out = Out::new(BINARY);
    let more =
        ["--seeds", "1", "--set", "widths=[1.0]", "--set", "label_noise=[0.0,0.5]", "--set", "epochs=40"];
    let run = out.command(&[SMALL, &more, &["--set", "batches=[10,200]"]]).output().unwrap();
    assert!(run.status.success());
    let run = out.newest();
    let models = rows(&run, "models.csv");
    let reached: Vec<&str> = models.iter().map(|row| row["reached_the_loss"].as_str()).collect();
    // By batch, then by noise: 40 steps of the largest batch come to nothing, with wrong labels least of all.
    assert_eq!(models.len(), 4);
    assert_eq!((reached[0], reached[3]), ("true", "false"));
    let count = reached.iter().filter(|&&reached| reached == "true").count();
    assert_eq!(run.join("correlation.csv").exists(), count >= 3);
    // Wrong labels cost test accuracy, be they fitted or not.
    assert!(number(&models[1], "test_accuracy") < number(&models[0], "test_accuracy"));
}

#[test]
fn nonsense_is_refused_before_anything_runs() {
    let out = Out::new(BINARY);
    let refusal = |more: &[&str], code: i32| complaint(out.command(&[&SMALL[..4], more]), code);
    assert!(refusal(&["--set", "lrs=[0.1,0.1]"], 2).contains("lrs must be different, found 0.1 twice"));
    assert!(refusal(&["--network", "resnet"], 2).contains("network must be lenet or widths"));
    assert!(refusal(&["--weights", "none.safetensors"], 1).contains("none.safetensors"));
}
