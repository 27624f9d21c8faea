//! What every long call is handed: a seed, a way to report progress, a way to be stopped.

use crate::abi::HostApi;
use crate::{Error, Result};

/// Seed, progress and cancellation of one call. It may be used from several threads.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The same seed on the same machine must give the same integers.
    pub seed: u64,
    host: &'a HostApi,
}

impl<'a> Context<'a> {
    /// The context of a call.
    pub(crate) fn new(seed: u64, host: &'a HostApi) -> Self {
        Self { seed, host }
    }

    /// Says that `done` of `total` units of this call are done.
    #[allow(unsafe_code, reason = "a function of the host")]
    pub fn progress(&self, done: u64, total: u64) {
        // SAFETY: the host's table is valid during the call, which the lifetime stands for.
        unsafe { (self.host.progress)(self.host.ctx, done, total) }
    }

    /// Whether the user asked to stop.
    #[allow(unsafe_code, reason = "a function of the host")]
    pub fn is_cancelled(&self) -> bool {
        // SAFETY: as above.
        unsafe { (self.host.cancelled)(self.host.ctx) != 0 }
    }

    /// [`Error::Cancelled`] once the user asked to stop: `cx.check()?` every so often.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("seed", &self.seed).finish_non_exhaustive()
    }
}
