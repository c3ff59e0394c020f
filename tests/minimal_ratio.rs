//! `minimal-ratio` from its command line to its files: a small run, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};

const BINARY: &str = env!("CARGO_BIN_EXE_minimal-ratio");

/// 1-3-2-1 has 6 + 8 + 3 = 17 parameters. Six runs make more than one job for each of two workers.
const SMALL: &[&str] = &[
    "--device",
    "cpu",
    "--quiet",
    "--seeds",
    "6",
    "--set",
    "widths=[1,3,2,1]",
    "--set",
    "epochs=300",
    "--set",
    "grid.points=30",
    "--set",
    "grid.step=0.1",
    "--set",
    "gradient_norm=0.05",
    "--set",
    "critical.steps=30",
];

#[test]
fn a_small_run_has_every_row_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--workers", "1"]]);
    let again = out.run(&[SMALL, &["--workers", "2"]]);
    assert_same_files(
        &run,
        &again,
        &[
            "points.csv",
            "eigenvalues.csv",
            "search.csv",
            "claims.csv",
            "minimal_ratio.svg",
            "eigenvalues.svg",
            "search.svg",
        ],
    );
    assert_eq!(
        header(&run, "points.csv"),
        "seed,phase,status,epochs,steps,loss,gradient_norm,above_zero,positive,zero,negative,minimal_ratio_plain,\
         minimal_ratio,lowest_eigenvalue,highest_eigenvalue,curvature_along_gradient"
    );
    let (points, eigenvalues) = (rows(&run, "points.csv"), rows(&run, "eigenvalues.csv"));
    assert_eq!((points.len(), eigenvalues.len()), (6 * 2, 6 * 2 * 17));
    let steps = rows(&run, "search.csv");
    for row in &points {
        let of = |key: &str| number(row, key);
        assert_eq!((of("positive") + of("zero") + of("negative")).to_bits(), 17f64.to_bits());
        // Counted again from the other table.
        let own = |other: &&std::collections::BTreeMap<String, String>| {
            other["seed"] == row["seed"] && other["phase"] == row["phase"]
        };
        let values: Vec<f64> =
            eigenvalues.iter().filter(own).map(|value| number(value, "eigenvalue")).collect();
        assert!(values.is_sorted());
        let (lowest, highest) = (of("lowest_eigenvalue"), of("highest_eigenvalue"));
        assert_eq!((values[0].to_bits(), values[16].to_bits()), (lowest.to_bits(), highest.to_bits()));
        let bound = 1e-12 * highest.abs().max(lowest.abs());
        let share = |bound: f64| values.iter().filter(|&&value| value > bound).count() as f64 / 17.;
        assert!((of("minimal_ratio_plain") - share(0.)).abs() < 1e-12);
        assert!((of("minimal_ratio") - share(bound)).abs() < 1e-12);

        let norms: Vec<f64> = steps
            .iter()
            .filter(|step| step["seed"] == row["seed"])
            .map(|step| number(step, "gradient_norm"))
            .collect();
        assert!(norms.windows(2).all(|pair| pair[1] < pair[0]), "{norms:?}");
        if row["phase"] == "training" {
            assert_eq!(of("gradient_norm").to_bits(), norms[0].to_bits());
            let stopped = row["status"] == "small gradient";
            assert_eq!(stopped, of("epochs") < 300.);
            // Training compares in f32.
            assert!(!stopped || of("gradient_norm") < 0.0501, "{row:?}");
        } else {
            assert_eq!(of("gradient_norm").to_bits(), norms[norms.len() - 1].to_bits());
            assert_eq!(of("steps") as usize, norms.len() - 1);
            assert_eq!(row["status"] == "reached", of("gradient_norm") <= 1e-8);
        }
    }
    for figure in ["minimal_ratio.png", "eigenvalues.png", "search.png"] {
        assert!(run.join(figure).exists());
    }
    // Another network than the notebook's: none of its numbers is judged.
    assert!(rows(&run, "claims.csv").iter().all(|claim| claim["source"] != "notebook"));
}

#[test]
fn without_a_search_only_training_is_looked_at() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--set", "critical.steps=0", "--set", "activation=tanh"]]);
    let points = rows(&run, "points.csv");
    assert!(points.len() == 6 && points.iter().all(|row| row["phase"] == "training"));
    assert!(!run.join("search.csv").exists());
}

#[test]
fn settings_without_sense_are_refused() {
    let out = Out::new(BINARY);
    for (setting, word) in [
        ("widths=[2,3,1]", "widths"),
        ("widths=[1,100,100,1]", "2,000 parameters"),
        ("tolerance=1.5", "tolerance"),
        ("critical.tolerance=0", "critical.tolerance"),
        ("epochs=0", "epochs"),
        ("gradient_norm=-1", "gradient_norm"),
        ("target=1/(x-x)", "target"),
        ("activation=sigmoid", "activation"),
    ] {
        let said = complaint(out.command(&[&["--set", setting]]), 2);
        assert!(said.contains(word), "{setting}: {said}");
    }
}
