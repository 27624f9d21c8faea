//! A taq of one's own: the built-in plugins, those of this crate, and taq's command line.

mod clipping;

// The built-in plugins. Without this line the host has only its own.
use taq_plugins as _;

fn main() {
    taq_cli::main()
}
