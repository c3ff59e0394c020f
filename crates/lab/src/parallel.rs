//! Independent jobs side by side.

use crate::panics::caught;
use anyhow::{Result, anyhow};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Runs `work` on every job, with one thread for each context, and returns the results in the jobs' order.
///
/// A context is what a thread needs for itself (tensors are handles that cannot be shared, only cloned). On a CPU, each
/// thread computes alone: two models with one thread each are faster than one with two, and the numbers cannot depend on
/// how many threads there are. After an error, or a panic, no further job begins; the first error in the jobs' order is returned.
pub fn in_parallel<C: Send, J: Sync, T: Send>(
    contexts: Vec<C>,
    jobs: &[J],
    work: impl Fn(&mut C, &J) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results: Vec<Mutex<Option<Result<T>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for mut context in contexts {
            let (next, failed, results, work) = (&next, &failed, &results, &work);
            scope.spawn(move || {
                tch::set_num_threads(1);
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let result = caught(|| work(&mut context, job));
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    if let Ok(mut place) = results[index].lock() {
                        *place = Some(result);
                    }
                }
            });
        }
    });
    let mut all = Vec::with_capacity(jobs.len());
    let mut stopped = false;
    for place in results {
        match place.into_inner() {
            Ok(Some(Ok(value))) => all.push(value),
            Ok(Some(Err(error))) => return Err(error),
            _ => stopped = true,
        }
    }
    if stopped { Err(anyhow!("a worker stopped without a result")) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_workers() {
        let jobs: Vec<u64> = (0..100).collect();
        for workers in 1..=4 {
            let squares = in_parallel(vec![(); workers], &jobs, |(), &n| Ok(n * n)).unwrap();
            assert_eq!(squares, jobs.iter().map(|n| n * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let jobs: Vec<u64> = (0..1000).collect();
        let done = AtomicUsize::new(0);
        let error = in_parallel(vec![(); 2], &jobs, |(), &n| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            done.fetch_add(1, Ordering::Relaxed);
            if n == 3 { Err(anyhow!("job {n}")) } else { Ok(()) }
        });
        assert_eq!(error.unwrap_err().to_string(), "job 3");
        assert!(done.into_inner() < 1000);
        let panic = in_parallel(vec![(); 2], &jobs, |(), &n| if n == 3 { panic!("job {n}") } else { Ok(()) });
        assert!(panic.unwrap_err().to_string().contains("job 3"));
    }
}
