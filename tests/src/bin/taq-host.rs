//! A host of one's own, as a plugin author builds it: plugins linked by name, then taq's command line.

use taq_plugins as _;

fn main() {
    taq_cli::main()
}
