//! `taq completions` and `taq man`.

use std::path::PathBuf;

use clap_complete::Shell;

/// Flags of `taq completions`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Print what makes a shell complete commands, flags and their values",
    after_help = "Examples:\n  \
                  taq completions bash > ~/.local/share/bash-completion/completions/taq\n  \
                  taq completions zsh > \"${fpath[1]}/_taq\"\n  \
                  taq completions fish > ~/.config/fish/completions/taq.fish\n\n\
                  A new shell knows them."
)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete in
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Flags of `taq man`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Print the manual page, or write one for every command",
    after_help = "Examples:\n  \
                  taq man | man -l -                                 read it\n  \
                  taq man --out ~/.local/share/man/man1              then `man taq`, `man taq-round`, …"
)]
pub(crate) struct ManArgs {
    /// Write taq.1, taq-run.1 and so on here
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}
