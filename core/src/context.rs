//! What every long task is handed: a seed, a way to report progress, a way to be stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Where progress goes. The CLI draws bars; a library user may count.
pub trait Progress: Send + Sync {
    /// A task of `total` units begins; the one before it, if any, is over.
    fn begin(&self, task: &str, total: u64);
    /// `units` more are done; `note` is for people (“3.1 s/img”), and may be empty.
    fn advance(&self, units: u64, note: &str);
    /// The task is over.
    fn end(&self);
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64, _: &str) {}
    fn end(&self) {}
}

/// Set once, from a signal handler or another thread, to stop at the next safe point.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everything that shares this flag to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Seed, progress and cancellation of a task.
#[derive(Clone)]
pub struct Context {
    /// The same seed on the same machine gives the same bytes.
    pub seed: u64,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// Whether to stop.
    pub cancel: Cancel,
}

impl Context {
    /// A context that reports nothing and is never cancelled.
    pub fn quiet(seed: u64) -> Self {
        Self { seed, progress: Arc::new(Quiet), cancel: Cancel::default() }
    }

    /// `Err(Cancelled)` once somebody asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
