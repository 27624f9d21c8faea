//! The `taq` command: the built-in plugins and the command line.

use std::process::ExitCode;

use taq_plugins as _;

fn main() -> ExitCode {
    taq_cli::main()
}
