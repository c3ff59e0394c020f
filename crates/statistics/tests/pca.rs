//! Against scikit-learn: fixtures of `scripts/reference/pca.py`.

use flatland_statistics::Pca;
use ndarray::{Array1, Array2};
use serde_json::Value;

fn vector(value: &Value) -> Array1<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn matrix(value: &Value) -> Array2<f64> {
    let rows: Vec<Array1<f64>> = value.as_array().unwrap().iter().map(vector).collect();
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(row, column)| rows[row][column])
}

/// Largest difference over the largest expected value.
fn error<D: ndarray::Dimension>(found: &ndarray::Array<f64, D>, expected: &ndarray::Array<f64, D>) -> f64 {
    let largest = expected.iter().fold(0., |largest: f64, x| largest.max(x.abs()));
    (found - expected).iter().fold(0., |most: f64, x| most.max(x.abs())) / largest
}

#[test]
fn agrees_with_scikit_learn() {
    let cases: Value = serde_json::from_str(include_str!("fixtures/pca.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let rows = matrix(&case["rows"]);
        let components = matrix(&case["components"]);
        for pca in
            [Pca::fit(rows.view(), components.nrows()), Pca::fit_by_gram(rows.view(), components.nrows())]
        {
            let pca = pca.unwrap();
            for (what, error) in [
                ("scores", error(&pca.scores, &matrix(&case["scores"]))),
                ("components", error(&pca.components, &components)),
                ("explained variance", error(&pca.explained_variance, &vector(&case["explained_variance"]))),
                ("ratio", error(&pca.explained_variance_ratio, &vector(&case["explained_variance_ratio"]))),
                ("mean", error(&pca.mean, &vector(&case["mean"]))),
            ] {
                assert!(error < 1e-8, "{}, {:?}, {what}: {error:.1e}", case["name"], pca.solver);
            }
        }
    }
}
