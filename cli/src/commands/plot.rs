//! `taq plot`, and the figures that `taq round` and `taq run` draw when they are done.

use std::path::Path;

use taq_core::artifacts::RunFolder;
use taq_core::{Error, Result};

use crate::args::PlotArgs;
use crate::error::Failure;
use crate::output::{Table, print, terminal_width};
use crate::plot::{self, Drawn, Format, Request};

/// Draws figures, or lists them.
pub(crate) fn plot(args: &PlotArgs) -> Result<(), Failure> {
    if args.list {
        let mut table = Table::new(&["FIGURE", "WHAT IT SHOWS"]);
        plot::known().for_each(|(name, about)| table.row([name, about]));
        return print(&table.render(terminal_width()));
    }
    report(&plot::draw(open(&args.run)?, &args.request())?)
}

/// The figures of rounding.
pub(super) fn after_round(run: &Path) -> Result<(), Failure> {
    report(&plot::rounding(open(run)?)?)
}

/// The figures of all stages.
pub(super) fn after_run(run: &Path) -> Result<(), Failure> {
    let request = Request { formats: vec![Format::Png], ..Request::default() };
    report(&plot::draw(open(run)?, &request)?)
}

fn open(run: &Path) -> Result<RunFolder> {
    if !run.exists() {
        return Err(Error::StageMissing {
            stage: "plot",
            needs: "statistics, a plan or rounded weights".into(),
            run: run.to_owned(),
            first: "calibrate",
        });
    }
    RunFolder::open(run)
}

/// What was drawn, a line a file.
fn report(drawn: &[Drawn]) -> Result<(), Failure> {
    let mut table = Table::new(&["FILE", "WHAT IT SHOWS"]);
    for figure in drawn {
        for file in &figure.files {
            table.row([file.display().to_string().as_str(), figure.about]);
        }
    }
    print(&table.render(terminal_width()))
}
