//! Plugins that each do one thing wrong.

use taq_plugin::{
    Batch, BlockJob, BlockRounder, Context, Error, LayerJob, LayerRounder, LayerValues, Plugin, Result,
    RoundedLayer,
};

use crate::good::Nothing;

/// A rounder of layers: its name, how it is made, what it answers.
macro_rules! rude {
    ($(#[$doc:meta])* $type:ident, $name:literal, $new:expr, |$job:ident, $cx:ident| $round:expr) => {
        $(#[$doc])*
        pub struct $type;

        impl Plugin for $type {
            type Settings = Nothing;
            const NAME: &'static str = $name;
            const SUMMARY: &'static str = "Does one thing wrong.";
            fn new(_: Nothing) -> Result<Self> {
                $new
            }
        }

        impl LayerRounder for $type {
            fn round(&self, $job: &LayerJob<'_>, $cx: &Context<'_>) -> Result<RoundedLayer> {
                $round
            }
        }
    };
}

rude!(
    /// Panics where it is made.
    PanicsInCreate, "panics-in-create", panic!("no instance today"), |job, _cx| Ok(job.layer.nearest())
);
rude!(
    /// Panics where it rounds.
    PanicsInRound, "panics-in-round", Ok(Self), |job, _cx| panic!("cannot round {}", job.layer.spec.id)
);
rude!(
    /// Panics where it is dropped.
    PanicsInDestroy, "panics-in-destroy", Ok(Self), |job, _cx| Ok(job.layer.nearest())
);
rude!(
    /// Says NaN.
    SaysNan, "says-nan", Ok(Self), |job, _cx| {
        let mut rounded = job.layer.nearest();
        rounded.scale[1] = f32::NAN;
        Ok(rounded)
    }
);
rude!(
    /// Returns too few numbers.
    TooFew, "too-few", Ok(Self), |job, _cx| {
        let mut rounded = job.layer.nearest();
        rounded.weight_int.pop();
        Ok(rounded)
    }
);
rude!(
    /// Has an error of ten million bytes.
    LongError, "long-error", Ok(Self), |_job, _cx| Err(Error::Failed("\x1b[31mno".repeat(10_000_000 / 7)))
);
rude!(
    /// Says that it was asked to stop.
    StopsUnasked, "stops-unasked", Ok(Self), |_job, _cx| Err(Error::Cancelled)
);
rude!(
    /// Never returns, and never looks whether it should stop.
    Stuck, "stuck", Ok(Self), |_job, _cx| loop {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
);

impl Drop for PanicsInDestroy {
    fn drop(&mut self) {
        panic!("cannot end");
    }
}

/// Asks for rows that there are not.
pub struct WrongRows;

impl Plugin for WrongRows {
    type Settings = Nothing;
    const NAME: &'static str = "wrong-rows";
    const SUMMARY: &'static str = "Asks for rows that there are not.";
    fn new(_: Nothing) -> Result<Self> {
        Ok(Self)
    }
}

impl BlockRounder for WrongRows {
    fn round(&self, job: &mut BlockJob<'_>, _: &Context<'_>) -> Result<Vec<RoundedLayer>> {
        let values: Vec<_> =
            job.layers.iter().map(|l| LayerValues { weight: l.weight, input_scale: None }).collect();
        let rows = [job.reconstruction.rows() as u64];
        let batch = Batch { rows: &rows, drop: None };
        job.reconstruction.loss_and_gradients(&values, batch, true)?;
        Ok(job.layers.iter().map(|l| l.nearest()).collect())
    }
}

/// Calls the host's functions on another thread.
pub struct OtherThread;

impl Plugin for OtherThread {
    type Settings = Nothing;
    const NAME: &'static str = "other-thread";
    const SUMMARY: &'static str = "Calls the host from another thread.";
    fn new(_: Nothing) -> Result<Self> {
        Ok(Self)
    }
}

impl BlockRounder for OtherThread {
    fn round(&self, job: &mut BlockJob<'_>, _: &Context<'_>) -> Result<Vec<RoundedLayer>> {
        /// What the types forbid, as a plugin in C could do it.
        struct Smuggled<'a>(&'a BlockJob<'a>);
        // SAFETY: there is none, which is the test: the host must notice.
        #[allow(unsafe_code, reason = "misuse on purpose")]
        unsafe impl Sync for Smuggled<'_> {}
        impl Smuggled<'_> {
            fn loss(&self) -> Result<f32> {
                let layers = &self.0.layers;
                let values: Vec<_> =
                    layers.iter().map(|l| LayerValues { weight: l.weight, input_scale: None }).collect();
                self.0.reconstruction.held_out_loss(&values)
            }
        }
        let job = Smuggled(job);
        let there = std::thread::scope(|scope| scope.spawn(|| job.loss()).join());
        there.unwrap_or_else(|_| Err("the thread panicked".into()))?;
        Err("the host did not notice".into())
    }
}
