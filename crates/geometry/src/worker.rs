//! Threads that wait for work, each computing alone.

use crate::operator::CurvatureError;
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::thread::{Builder, JoinHandle};

/// A thread that answers every job with results, in its own order, until it is dropped.
#[derive(Debug)]
pub struct Worker<J, T> {
    jobs: Option<Sender<J>>,
    found: Receiver<T>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Send + 'static, T: Send + 'static> Worker<J, T> {
    /// `alone`: libtorch computes with one thread there. [`CurvatureError::Thread`] where the system refuses it.
    pub fn start(
        alone: bool,
        mut work: impl FnMut(J, &Sender<T>) -> Result<(), SendError<T>> + Send + 'static,
    ) -> Result<Self, CurvatureError> {
        let (jobs, todo) = channel::<J>();
        let (done, found) = channel();
        let run = move || {
            if alone {
                tch::set_num_threads(1);
            }
            while let Ok(job) = todo.recv() {
                if work(job, &done).is_err() {
                    return;
                }
            }
        };
        let thread = Builder::new().spawn(run).map_err(|_| CurvatureError::Thread)?;
        Ok(Self { jobs: Some(jobs), found, thread: Some(thread) })
    }
}

impl<J, T> Worker<J, T> {
    pub fn send(&self, job: J) -> Result<(), CurvatureError> {
        let jobs = self.jobs.as_ref().ok_or(CurvatureError::Thread)?;
        jobs.send(job).map_err(|_| CurvatureError::Thread)
    }

    /// Its next result.
    pub fn receive(&self) -> Result<T, CurvatureError> {
        self.found.recv().map_err(|_| CurvatureError::Thread)
    }
}

impl<J, T> Drop for Worker<J, T> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// While it lives, libtorch computes with one thread for the calling one.
pub struct Alone(i32);

impl Alone {
    pub fn new() -> Self {
        let before = tch::get_num_threads();
        tch::set_num_threads(1);
        Self(before)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}
