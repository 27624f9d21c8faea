//! The command line of taq, as a library: a host of one's own links its plugins and calls [`main`].

use std::process::ExitCode;

/// Runs the command line.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
