//! One HTML file about a run, or several: what it found, as far as its stages are done.
//!
//! [`run`] reads a folder into what the page shows as text; [`data`] is what its script draws (maps of layers and
//! timesteps, a look into every layer), embedded as JSON. The page is an askama template (`templates/report`), so
//! whatever comes from the run, prompts above all, is escaped unless a filter says otherwise; besides, a
//! content security policy names the one script by its hash and forbids all that is not in the file. Charts are uPlot's
//! (`assets/vendor`), maps and the slider our own few lines (`assets`).

mod blocks;
mod compare;
mod data;
mod freshness;
mod images;
mod inputs;
mod layers;
mod maps;
mod numbers;
mod page;
mod plan;
mod run;
mod sensitivities;
mod settings;
mod stages;

use std::path::PathBuf;

use askama::Template;
use taq_core::artifacts::{RunFolder, atomic_write_bytes};
use taq_core::{Error, Result};

use page::Page;
use run::{Missing, RunView};

/// The command, in errors.
const STAGE: &str = "report";

/// What is to be reported.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// At least one folder.
    pub(crate) runs: Vec<PathBuf>,
    /// Prompts with images. `None`: as many as fit.
    pub(crate) images: Option<usize>,
    /// The file. `None`: in the first run.
    pub(crate) out: Option<PathBuf>,
}

/// A report that was written.
pub(crate) struct Written {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// What it could not show.
    pub(crate) missing: Vec<Missing>,
}

/// Writes the report.
///
/// # Errors
/// [`Error::StageMissing`] of a folder without results, [`Error::Settings`] of the same folder twice, and what
/// reading results gives; then nothing is written.
pub(crate) fn write(request: &Request) -> Result<Written> {
    let mut views: Vec<RunView> = Vec::new();
    let mut path = request.out.clone();
    for (index, root) in request.runs.iter().enumerate() {
        if request.runs[..index].contains(root) {
            let reason = format!("`{}` is named twice; name each run folder once", root.display());
            return Err(Error::settings("--run", reason));
        }
        let missing = || Error::StageMissing {
            stage: STAGE,
            needs: "results of a run".into(),
            run: root.clone(),
            first: "calibrate",
        };
        if !root.exists() {
            return Err(missing());
        }
        let run = RunFolder::open(root)?;
        path.get_or_insert_with(|| run.report_html());
        let view = RunView::read(run, index, request.images)?;
        views.push(view.ok_or_else(missing)?);
    }
    let path = path.ok_or_else(|| Error::settings("--run", "no run folder is named"))?;
    let missing = views.iter_mut().flat_map(|v| v.missing.clone()).collect();
    let html = Page::new(views).render().map_err(|e| Error::io("write", &path)(std::io::Error::other(e)))?;
    atomic_write_bytes(&path, html.as_bytes())?;
    Ok(Written { path, bytes: html.len() as u64, missing })
}
