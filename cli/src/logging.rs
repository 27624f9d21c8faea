//! The log on stderr: `-v`, `-q` and `TAQ_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::terminal::Terminal;

/// Environment variable with `tracing` directives, such as `debug` or `taq_core=trace`; it outranks the flags.
const VARIABLE: &str = "TAQ_LOG";

/// Starts the log. A program that has a subscriber of its own keeps it.
pub(crate) fn start(verbose: u8, quiet: bool, terminal: &Terminal) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (_, 0) => "info",
        (_, 1) => "debug",
        _ => "trace",
    };
    let wanted = std::env::var(VARIABLE).ok().filter(|v| !v.is_empty());
    let (filter, refused) = match wanted.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(e)) => (EnvFilter::new(level), Some(e)),
        None => (EnvFilter::new(level), None),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(terminal.clone())
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(verbose > 0)
        .without_time()
        .try_init();
    if let (Ok(()), Some(e)) = (started, refused) {
        tracing::warn!("{VARIABLE} is ignored: {e}");
    }
}
