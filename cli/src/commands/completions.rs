//! `taq completions` and `taq man`: what shells and `man` read, from the command line's own definition.

use std::ffi::OsStr;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use taq_core::Error;
use taq_core::artifacts::atomic_write_bytes;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::error::Failure;
use crate::output::print_bytes;

/// Prints the completions of a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), program(), &mut script);
    print_bytes(&script)
}

/// The name that this program was called by: a host of one's own has another.
fn program() -> String {
    let first = std::env::args_os().next();
    let name = first.as_deref().map(Path::new).and_then(Path::file_stem).and_then(OsStr::to_str);
    name.unwrap_or("taq").to_owned()
}

/// Prints the page of the program, or writes the pages of all commands.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    match &args.out {
        None => print_bytes(&page(&command)?),
        Some(folder) => write(&command, folder),
    }
}

fn write(command: &Command, folder: &Path) -> Result<(), Failure> {
    // `taq`, `taq-round`: what building the command has set.
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    atomic_write_bytes(&folder.join(format!("{name}.1")), &page(command)?)?;
    command.get_subcommands().try_for_each(|inner| write(inner, folder))
}

fn page(command: &Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).map_err(Error::io("write", "manual page"))?;
    Ok(page)
}
