//! The `taq` command: the built-in plugins and the command line.

use taq_plugins as _;

fn main() {
    taq_cli::main()
}
