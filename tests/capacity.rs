//! `capacity` from its command line to its files: a small run on `digits`, with the built binary.

mod common;

use common::{Out, assert_same_files, complaint, header, number, rows};

const BINARY: &str = env!("CARGO_BIN_EXE_capacity");

/// Two nets as in the report for two epochs, and three of the grid until they fit their fifty examples.
const SMALL: &[&str] = &[
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    "images.train=400",
    "--set",
    "images.test=100",
    "--set",
    "report.widths=[[5,9],[20,30]]",
    "--set",
    "report.epochs=2",
    "--set",
    "wide.widths=[1,40,300]",
    "--set",
    "wide.train=50",
    "--set",
    "wide.batch=25",
    "--set",
    "wide.epochs=150",
    "--set",
    "wide.stop_at_loss=0.05",
];

#[test]
fn tables_agree_with_each_other_whatever_the_number_of_workers() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--seeds", "2", "--workers", "1"]]);
    let again = out.run(&[SMALL, &["--seeds", "2", "--workers", "2"]]);
    let files = ["training.csv", "capacity.csv", "wide.csv", "claims.csv", "capacity.svg", "wide.svg"];
    assert_same_files(&run, &again, &files);

    assert_eq!(
        header(&run, "wide.csv"),
        "seed,net,parameters,epochs,last_epoch_train_loss_nats,last_epoch_train_accuracy,train_loss_nats,\
         train_accuracy,test_loss_nats,test_accuracy,loss_gap_nats,error_gap"
    );
    let training = rows(&run, "training.csv");
    assert_eq!(training.len(), 2 * 2 * 2 * 2, "seeds, nets, epochs, splits");
    let ten = rows(&run, "capacity.csv");
    let parameters: Vec<&str> = ten.iter().map(|row| row["parameters"].as_str()).collect();
    // 785 × 5 + 6 × 9 + 10 × 10, and 785 × 20 + 21 × 30 + 31 × 10.
    assert_eq!(parameters, ["4079", "16640", "4079", "16640"]);
    for row in &ten {
        let last = |split: &str| {
            let same = |other: &&_| {
                let other: &std::collections::BTreeMap<String, String> = other;
                ["seed", "net"].iter().all(|&key| other[key] == row[key])
                    && other["split"] == split
                    && other["epoch"] == "2"
            };
            training.iter().find(same).unwrap()
        };
        assert_eq!(last("train")["loss_nats"], row["last_epoch_train_loss_nats"]);
        assert_eq!(last("test")["loss_nats"], row["test_loss_nats"]);
    }

    let grid = rows(&run, "wide.csv");
    assert_eq!(grid.len(), 2 * 3);
    for row in ten.iter().chain(&grid) {
        let gap = number(row, "test_loss_nats") - number(row, "train_loss_nats");
        assert!((gap - number(row, "loss_gap_nats")).abs() < 1e-12, "{row:?}");
    }
    for row in &grid {
        // Ended by its loss, or by its epochs.
        let loss = number(row, "last_epoch_train_loss_nats");
        assert!(loss <= 0.05 || row["epochs"] == "150", "{row:?}");
        assert_eq!(
            loss <= 0.05,
            row["net"] != "784-1-10",
            "one hidden unit cannot fit fifty examples: {row:?}"
        );
    }
}

#[test]
fn the_grid_can_be_left_out_and_nonsense_is_refused() {
    let out = Out::new(BINARY);
    let run = out.run(&[SMALL, &["--set", "wide.widths=[]"]]);
    assert!(run.join("capacity.csv").exists() && !run.join("wide.csv").exists());
    assert_eq!(rows(&run, "claims.csv").len(), 3, "those on the report's nets");
    let refusal = |setting: &str| complaint(out.command(&[&["--set", setting]]), 2);
    assert!(refusal("report.widths=[[0,5]]").contains("[0, 5]"));
    assert!(refusal("wide.label_noise=-0.1").contains("wide.label_noise must lie between 0 and 1"));
}
