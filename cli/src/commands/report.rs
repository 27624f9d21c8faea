//! `taq report`, and the report that `taq run` writes when it is done.

use std::path::Path;

use taq_core::Result;

use crate::args::ReportArgs;
use crate::error::Failure;
use crate::output::{bytes, print};
use crate::report::{self, Request};

/// Writes a report.
pub(crate) fn report(args: &ReportArgs) -> Result<(), Failure> {
    write(&args.request())
}

/// The report of a run.
pub(super) fn after_run(run: &Path) -> Result<(), Failure> {
    write(&Request { runs: vec![run.to_owned()], ..Request::default() })
}

fn write(request: &Request) -> Result<(), Failure> {
    let written = report::write(request)?;
    let mut text = format!("Report: {} ({})\n", written.path.display(), bytes(written.bytes));
    for missing in &written.missing {
        let (what, stage, run) = (missing.what, missing.stage, missing.run.display());
        text.push_str(&format!("Left out: {what}; run `taq {stage} --run {run}`\n"));
    }
    print(&text)
}
