//! Wall time and peak memory of a stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Measures from its creation to [`Meter::stop`].
pub(crate) struct Meter {
    start: Instant,
    peak: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

impl Meter {
    pub(crate) fn start() -> Self {
        let (peak, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let sampler = {
            let (peak, over) = (peak.clone(), over.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    sample(&peak);
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            })
        };
        Self { start: Instant::now(), peak, over, sampler: Some(sampler) }
    }

    /// Seconds, and peak resident bytes as sampled every 20 ms.
    pub(crate) fn stop(mut self) -> (f64, usize) {
        sample(&self.peak);
        self.join();
        (self.start.elapsed().as_secs_f64(), self.peak.load(Ordering::Relaxed))
    }

    fn join(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            sampler.thread().unpark();
            // The thread only samples and parks; a panic there would cost a figure, not the run.
            let _ = sampler.join();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.join();
    }
}

fn sample(peak: &AtomicUsize) {
    if let Some(stats) = memory_stats::memory_stats() {
        peak.fetch_max(stats.physical_mem, Ordering::Relaxed);
    }
}
