//! 256 snapshots of 100,000 weights: right, and within the memory that the documentation promises. A test of its own, since peak
//! memory is a whole process's.

use flatland_statistics::{Pca, Solver};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Instant;

const MIB: f64 = 1024. * 1024.;

/// Of this process so far, where the system tells.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some(kib.trim().parse::<f64>().ok()? / 1024.)
}

#[test]
fn many_weights_fit_in_memory() {
    let (runs, epochs, weights) = (8, 32, 100_000);
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let mut rows = Array2::<f32>::zeros((runs * epochs, weights));
    // Each run starts somewhere and goes its way in ever smaller steps.
    for (index, mut row) in rows.rows_mut().into_iter().enumerate() {
        let mut of_run = ChaCha8Rng::seed_from_u64(1 + (index / epochs) as u64);
        let done = 1. - 0.85f32.powi((index % epochs) as i32);
        row.mapv_inplace(|_| {
            let (start, way): (f32, f32) = (of_run.gen_range(-1.0..1.0), of_run.gen_range(-1.0..1.0));
            start + done * way + generator.gen_range(-0.01..0.01)
        });
    }
    let before = peak_memory_mib();
    let start = Instant::now();
    let pca = Pca::fit(rows.view(), 2).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let peak = peak_memory_mib();
    let start = Instant::now();
    let gram = Pca::fit_by_gram(rows.view(), 2).unwrap();
    println!(
        "linfa {seconds:.1} s, Gram matrix {:.1} s; {before:?} to {peak:?} MiB",
        start.elapsed().as_secs_f64()
    );
    assert_eq!((pca.solver, gram.solver), (Solver::Linfa, Solver::Gram));
    let unit = pca.explained_variance[0].sqrt();
    let difference = (&pca.scores - &gram.scores).iter().fold(0., |most: f64, x| most.max(x.abs())) / unit;
    // The second and third component differ by 5e-4 of the total variance: a solver that stops early mixes them.
    assert!(difference < 1e-7, "{difference:.1e}");
    assert!(((&pca.explained_variance / &gram.explained_variance).sum() - 2.).abs() < 1e-10);
    if let (Some(before), Some(peak)) = (before, peak) {
        // Two copies in f64, and a quarter of one for what is P x k.
        let copy = (runs * epochs * weights * 8) as f64 / MIB;
        assert!(peak - before < 2.25 * copy, "{:.0} MiB above the rows, a copy is {copy:.0}", peak - before);
    }
}
