//! Ctrl-C: the first stops at the next safe point, the second at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use taq_core::{Cancel, Error, Result};

use crate::error::CANCELLED;
use crate::terminal::Terminal;

/// From now on SIGINT and SIGTERM set the returned flag, and a second one ends the process.
///
/// The second does not run destructors: MLX's would first work off everything that is still queued.
pub(crate) fn listen(terminal: &Terminal) -> Result<Cancel> {
    let cancel = Cancel::default();
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::io("install", "signal handler"))?;
    let (flag, terminal) = (cancel.clone(), terminal.clone());
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                if flag.is_cancelled() {
                    signal_hook::low_level::exit(CANCELLED.into());
                }
                flag.cancel();
                terminal.write("stopping at the next safe point; press Ctrl-C again to stop at once\n");
            }
        })
        .map_err(Error::io("start", "signal thread"))?;
    Ok(cancel)
}
