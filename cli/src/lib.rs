//! The command line of taq, as a library: a host of one's own links its plugins and calls [`main`].
//!
//! ```no_run
//! // use my_plugins as _;      your crate of plugins
//! use taq_plugins as _; //     the built-in ones, if you want them
//!
//! fn main() {
//!     taq_cli::main()
//! }
//! ```

mod args;
mod commands;
mod error;
mod interrupt;
mod logging;
mod output;
mod panic;
mod plot;
mod progress;
mod report;
mod results;
mod settings_table;
mod terminal;

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Parser;

use crate::args::Cli;
use crate::error::{BAD_INPUT, DEFECT, SUCCESS};
use crate::terminal::Terminal;

/// Runs the command line with the plugins that are linked into this program, and ends it.
///
/// Exit codes: 0 done, 1 failed, 2 wrong input, 70 a defect (a panic), 130 stopped by Ctrl-C.
pub fn main() -> ! {
    mlx_host::exit(run(std::env::args_os()))
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            // `--help` and `--version` come here too, for stdout; a closed pipe is no error.
            let _ = e.print();
            return if e.use_stderr() { BAD_INPUT } else { SUCCESS };
        }
    };
    let terminal = Terminal::stderr(cli.common.quiet);
    panic::install(terminal.clone());
    logging::start(cli.common.verbose, cli.common.quiet, &terminal);
    match catch_unwind(AssertUnwindSafe(|| commands::execute(cli, terminal.clone()))) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(failure)) => {
            if let Some(text) = failure.render() {
                terminal.write(&text);
            }
            failure.exit_code()
        }
        Err(_) => DEFECT,
    }
}
