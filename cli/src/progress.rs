//! Progress of long tasks: a bar on a terminal, a line in the log every ten seconds elsewhere.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use taq_core::Progress;

use crate::output::{bytes, seconds};
use crate::terminal::Terminal;

/// Time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Units that come faster than this were there already: they were reused or resumed, not worked on.
const REUSED: Duration = Duration::from_millis(1);

/// Shows what the engine reports.
pub(crate) struct Reporter {
    terminal: Terminal,
    quiet: bool,
    task: Mutex<Option<Task>>,
}

struct Task {
    name: String,
    pace: Pace,
    bar: Option<ProgressBar>,
    logged: Instant,
    advanced: Instant,
}

/// How fast units are worked on.
#[derive(Debug)]
struct Pace {
    total: u64,
    done: u64,
    worked: u64,
    spent: Duration,
}

impl Pace {
    fn new(total: u64) -> Self {
        Self { total, done: 0, worked: 0, spent: Duration::ZERO }
    }

    /// Takes in `units` that took `time`.
    fn advance(&mut self, units: u64, time: Duration) {
        self.done += units;
        if units > 0 && time >= REUSED * u32::try_from(units).unwrap_or(u32::MAX) {
            self.worked += units;
            self.spent += time;
        }
    }

    fn seconds_per_unit(&self) -> Option<f64> {
        (self.worked > 0).then(|| self.spent.as_secs_f64() / self.worked as f64)
    }

    /// `12/64  3.10 s each  2 min 41 s left  1.2 GB`
    fn describe(&self, memory: Option<u64>) -> String {
        let mut text = format!("{}/{}", self.done, self.total);
        if let Some(each) = self.seconds_per_unit() {
            let _ = match each {
                e if e < 0.1 => write!(text, "  {:.1} per s", 1.0 / e),
                e => write!(text, "  {e:.2} s each"),
            };
            if self.done < self.total {
                let _ = write!(text, "  {} left", seconds(each * (self.total - self.done) as f64));
            }
        }
        if let Some(memory) = memory {
            let _ = write!(text, "  {}", bytes(memory));
        }
        text
    }
}

impl Reporter {
    /// Reports to this terminal; with `quiet`, to nobody.
    pub(crate) fn new(terminal: Terminal, quiet: bool) -> Arc<Self> {
        Arc::new(Self { terminal, quiet, task: Mutex::new(None) })
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn memory() -> Option<u64> {
    memory_stats::memory_stats().map(|m| m.physical_mem as u64)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:.bold} {bar:24.cyan/dim} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Reporter {
    fn begin(&self, name: &str, total: u64) {
        self.end();
        if self.quiet {
            return;
        }
        let bar = self.terminal.draws().then(|| {
            let bar = ProgressBar::new(total).with_style(style()).with_prefix(name.to_owned());
            let bar = self.terminal.bars().add(bar);
            bar.set_message(format!("0/{total}"));
            bar.tick();
            bar
        });
        let now = Instant::now();
        *self.task() =
            Some(Task { name: name.to_owned(), pace: Pace::new(total), bar, logged: now, advanced: now });
    }

    fn advance(&self, units: u64, note: &str) {
        let mut guard = self.task();
        let Some(task) = guard.as_mut() else { return };
        let now = Instant::now();
        task.pace.advance(units, now - task.advanced);
        task.advanced = now;
        let due = task.bar.is_some() || now - task.logged >= LOG_EVERY;
        if !due {
            return;
        }
        let mut text = task.pace.describe(memory());
        if !note.is_empty() {
            text.push_str("  ");
            text.push_str(note);
        }
        match &task.bar {
            Some(bar) => {
                bar.set_position(task.pace.done);
                bar.set_message(text);
            }
            None => {
                task.logged = now;
                tracing::info!("{}: {text}", task.name);
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = self.task().take().and_then(|t| t.bar) {
            bar.finish_and_clear();
            self.terminal.bars().remove(&bar);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reused_units_do_not_count_as_fast_work() {
        let mut pace = Pace::new(20);
        pace.advance(10, Duration::from_micros(300));
        assert_eq!(pace.seconds_per_unit(), None);
        pace.advance(2, Duration::from_secs(6));
        assert_eq!(pace.seconds_per_unit(), Some(3.0));
        assert_eq!(pace.describe(Some(1_200_000_000)), "12/20  3.00 s each  24.0 s left  1.2 GB");
    }

    #[test]
    fn quick_units_are_shown_per_second() {
        let mut pace = Pace::new(4);
        pace.advance(4, Duration::from_millis(40));
        assert_eq!(pace.describe(None), "4/4  100.0 per s");
    }
}
