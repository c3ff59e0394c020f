//! Progress on stderr: bars on a terminal, a plain line now and then elsewhere, nothing with `--quiet`.

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Between two plain lines where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Says how far a run is.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    terminal: bool,
    download: Mutex<Option<ProgressBar>>,
}

/// One stage of a run, for instance its training.
#[derive(Debug)]
pub struct Stage {
    what: String,
    bar: ProgressBar,
    /// The bar, and below it a line for each worker.
    lines: MultiProgress,
    /// What each worker last said.
    workers: Mutex<Vec<Worker>>,
    /// When the last plain line was written; `None` where there are none to write.
    last_line: Option<Mutex<Instant>>,
    /// Units that an earlier process did.
    skipped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Worker {
    thread: ThreadId,
    line: ProgressBar,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stderr().is_terminal(), download: Mutex::new(None) }
    }

    /// A line for the user, such as which device was chosen.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Begins a stage of so many units of work.
    pub fn stage(&self, what: &str, units: u64) -> Stage {
        let target = if self.quiet || !self.terminal {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let lines = MultiProgress::with_draw_target(target);
        let bar = lines.add(ProgressBar::new(units));
        let skipped = Arc::new(AtomicU64::new(0));
        let style = ProgressStyle::with_template("{prefix} {bar:32} {percent:>3} %  {left}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let not_counted = Arc::clone(&skipped);
        bar.set_style(style.with_key("left", move |state: &ProgressState, line: &mut dyn Write| {
            let skipped = not_counted.load(Ordering::Relaxed);
            let _ = line.write_str(&left(state.elapsed(), state.pos(), units, skipped));
        }));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        let last_line = (!self.quiet && !self.terminal).then(|| Mutex::new(Instant::now()));
        if last_line.is_some() {
            eprintln!("{what} …");
        }
        Stage { what: what.to_owned(), bar, lines, workers: Mutex::default(), last_line, skipped }
    }
}

impl Stage {
    /// So many more units are done by the calling thread; `now` says what just happened.
    pub fn advance(&self, units: u64, now: impl Into<String>) {
        self.bar.inc(units);
        let all = self.said(now.into());
        if let Some(last_line) = &self.last_line {
            let mut last_line = last_line.lock().unwrap_or_else(PoisonError::into_inner);
            if last_line.elapsed() >= LINE_EVERY {
                *last_line = Instant::now();
                let percent = 100 * self.bar.position() / self.bar.length().unwrap_or(1).max(1);
                let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
                let left = left(self.bar.elapsed(), position, length, self.skipped.load(Ordering::Relaxed));
                eprintln!("{}: {percent} %, {left}; {all}", self.what);
            }
        }
    }

    /// Shows it on the calling worker's line; what all workers said last.
    fn said(&self, now: String) -> String {
        let thread = std::thread::current().id();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.iter().find(|worker| worker.thread == thread) {
            worker.line.set_message(now);
        } else {
            let line = self.lines.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("  {wide_msg}");
            line.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            line.set_message(now);
            workers.push(Worker { thread, line });
        }
        workers.iter().map(|worker| worker.line.message()).collect::<Vec<_>>().join("; ")
    }

    /// Work that turned out to be done already counts as done, but not towards the time left.
    pub fn skip(&self, units: u64) {
        self.skipped.fetch_add(units, Ordering::Relaxed);
        self.bar.inc(units);
    }
}

/// How long the rest takes at the mean speed so far, that of the last steps says nothing where steps are few and long.
fn left(elapsed: Duration, position: u64, units: u64, skipped: u64) -> String {
    let done = position.saturating_sub(skipped);
    if done == 0 {
        return "time left unknown".into();
    }
    let rest = elapsed.mul_f64(units.saturating_sub(position) as f64 / done as f64);
    format!("{} left", HumanDuration(rest))
}

impl Drop for Stage {
    fn drop(&mut self) {
        for worker in self.workers.get_mut().unwrap_or_else(PoisonError::into_inner) {
            worker.line.finish_and_clear();
        }
        self.bar.finish_and_clear();
        if self.last_line.is_some() {
            eprintln!("{}: {} in {}", self.what, self.ended(), HumanDuration(self.bar.elapsed()));
        }
    }
}

impl Stage {
    fn ended(&self) -> &'static str {
        if self.bar.position() >= self.bar.length().unwrap_or(0) { "done" } else { "stopped" }
    }
}

impl flatland_data::Progress for Progress {
    fn begin(&self, what: &str, total_bytes: Option<u64>) {
        self.note(what);
        if self.quiet || !self.terminal {
            return;
        }
        let bar = total_bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let style =
            ProgressStyle::with_template("{bar:32} {binary_bytes} of {binary_total_bytes}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        *self.download.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.download.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(bytes);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.download.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_reckoned_from_what_was_done_here() {
        let minute = Duration::from_secs(60);
        assert_eq!(left(minute, 0, 10, 0), "time left unknown");
        assert_eq!(left(minute, 5, 10, 0), "60 seconds left");
        assert_eq!(left(minute, 5, 10, 5), "time left unknown");
        assert_eq!(left(minute, 6, 10, 5), "4 minutes left");
        assert_eq!(left(minute, 12, 10, 0), "0 seconds left");
    }
}
