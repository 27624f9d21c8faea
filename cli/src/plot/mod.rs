//! Figures of a run: what calibration saw, what was planned, how rounding went.
//!
//! A figure ([`figures`]) takes what it needs from the run folder's files ([`Sources`]) and becomes sheets; a sheet
//! is drawn on a [`canvas`], as PNG, SVG or both, by the same instructions. No model is loaded.

mod axis;
mod canvas;
mod figures;
mod heatmap;
mod panel;
mod raster;
mod style;
mod text;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use taq_core::artifacts::{RunFolder, atomic_write_bytes};
use taq_core::registry::near;
use taq_core::{Error, LayerId, Result, choose_layers};

use crate::results::layers;
use crate::results::sources::Sources;
use crate::results::statistics::{Statistics, spread};
use figures::{FIGURES, Figure, From, Sheet};

/// The command, in errors.
const STAGE: &str = "plot";
/// Snapshots unless steps are asked for.
const SNAPSHOTS: usize = 5;
/// Layers of figures that show one layer each, unless layers are asked for: those that vary most …
const VARIABLE: usize = 4;
/// … and of those with a shift, which are distributed otherwise, so many more.
const SHIFTED: usize = 2;

/// A format of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Pixels, to look at and to send
    Png,
    /// Lines and letters, for papers
    Svg,
}

/// What is to be drawn. `None`: what is usual.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) figures: Option<Vec<String>>,
    pub(crate) layers: Option<Vec<String>>,
    pub(crate) snapshot_steps: Option<Vec<usize>>,
    pub(crate) quant_config: Option<PathBuf>,
    pub(crate) distributions: bool,
    pub(crate) formats: Vec<Format>,
    /// Folder of the files.
    pub(crate) out: Option<PathBuf>,
}

/// What of a run is drawn.
struct Choice {
    /// Layers of the figures that show one layer each.
    layers: Vec<LayerId>,
    /// Positions of the snapshots among the statistics' steps.
    snapshots: Vec<usize>,
}

/// A figure that was drawn.
pub(crate) struct Drawn {
    pub(crate) about: &'static str,
    pub(crate) files: Vec<PathBuf>,
}

/// Names of all figures, with what they show.
pub(crate) fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    FIGURES.iter().map(|f| (f.name, f.about))
}

/// Draws the figures of a run, and says where they lie. What is wrong is said before the first file is written.
pub(crate) fn draw(run: RunFolder, request: &Request) -> Result<Vec<Drawn>> {
    let out = request.out.clone().unwrap_or_else(|| run.plots());
    let named = request.figures.as_deref().map(named).transpose()?;
    let sources = Sources::open(run, STAGE, request.quant_config.as_deref())?;
    let mut chosen = match named {
        Some(figures) => figures,
        None => usual(&sources)?,
    };
    if request.distributions {
        chosen.extend(FIGURES.iter().filter(|f| f.name == "distributions"));
    }
    let choice = choice(&sources, request)?;
    let mut sheets = Vec::new();
    for figure in chosen {
        let drawn = (figure.sheets)(&sources, &choice)?;
        if drawn.is_empty() && request.figures.is_some() {
            return Err(Error::settings(format!("figure `{}`", figure.name), figure.nothing));
        }
        sheets.push((figure, drawn));
    }
    write(&out, &sheets, &request.formats)
}

/// Draws what rounding left behind: losses, errors, integers.
pub(crate) fn rounding(run: RunFolder) -> Result<Vec<Drawn>> {
    let out = run.plots();
    let sources = Sources::rounding(run, STAGE)?;
    let choice = Choice { layers: Vec::new(), snapshots: Vec::new() };
    let figures = FIGURES.iter().filter(|f| f.from == From::Weights);
    let sheets = figures.map(|f| Ok((f, (f.sheets)(&sources, &choice)?))).collect::<Result<Vec<_>>>()?;
    write(&out, &sheets, &[Format::Png])
}

/// The figures of these names.
fn named(names: &[String]) -> Result<Vec<&'static Figure>> {
    let figure = |name: &String| {
        FIGURES.iter().find(|f| f.name == name).ok_or_else(|| {
            let known: Vec<String> = FIGURES.iter().map(|f| f.name.to_owned()).collect();
            let meant =
                near(name, &known).first().map_or_else(|| ".".into(), |n| format!("; did you mean `{n}`?"));
            Error::settings(
                "--figures",
                format!("there is no figure `{name}`{meant} There are {}", known.join(", ")),
            )
        })
    };
    names.iter().map(figure).collect()
}

/// The usual figures of the stages that are done.
fn usual(sources: &Sources) -> Result<Vec<&'static Figure>> {
    let ready = |from: From| match from {
        From::Statistics => sources.statistics().map(|_| ()),
        From::Plan => sources.plan().map(|_| ()),
        From::Weights => sources.weights().map(|_| ()),
    };
    let (ready, waiting): (Vec<_>, Vec<_>) =
        FIGURES.iter().filter(|f| f.usual).partition(|f| ready(f.from).is_ok());
    if ready.is_empty() {
        return Err(sources.missing("statistics, a plan or rounded weights", "observe"));
    }
    if !waiting.is_empty() {
        let names: Vec<&str> = waiting.iter().map(|f| f.name).collect();
        tracing::info!("left out until their stage is done: {}", names.join(", "));
    }
    Ok(ready)
}

/// Layers and steps, by the request or by what is worth looking at.
fn choice(sources: &Sources, request: &Request) -> Result<Choice> {
    let Ok(statistics) = sources.statistics() else {
        // Only statistics have layers and steps to choose from.
        let asked = request.layers.is_some() || request.snapshot_steps.is_some();
        return if asked {
            Err(sources.missing("statistics of the activations", "observe"))
        } else {
            Ok(Choice { layers: Vec::new(), snapshots: Vec::new() })
        };
    };
    Ok(Choice {
        layers: match &request.layers {
            Some(words) => choose_layers(&statistics.layers, words)?,
            None => remarkable(statistics),
        },
        snapshots: match &request.snapshot_steps {
            Some(steps) => statistics.positions(steps)?,
            None => spread(statistics.steps.len(), SNAPSHOTS),
        },
    })
}

/// A few layers that vary much over time, and a few with a shift.
fn remarkable(statistics: &Statistics) -> Vec<LayerId> {
    let ranked = statistics.most_variable(&statistics.layers);
    let mut chosen: Vec<LayerId> = ranked.iter().take(VARIABLE).cloned().collect();
    let shifted = |id: &&LayerId| statistics.row(id, |s| f64::from(u8::from(s.has_shift))).contains(&1.0);
    let more = ranked.iter().skip(VARIABLE).filter(shifted).take(SHIFTED);
    chosen.extend(more.cloned());
    layers::sort(&mut chosen);
    chosen
}

fn write(out: &Path, sheets: &[(&'static Figure, Vec<Sheet>)], formats: &[Format]) -> Result<Vec<Drawn>> {
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let files = |sheet: &Sheet| formats.iter().map(|f| file(out, sheet, *f)).collect::<Result<Vec<_>>>();
    let drawn = |(figure, sheets): &(&'static Figure, Vec<Sheet>)| {
        let files = sheets.par_iter().map(files).collect::<Result<Vec<_>>>()?.concat();
        Ok(Drawn { about: figure.about, files })
    };
    let drawn = sheets.iter().filter(|(_, sheets)| !sheets.is_empty()).map(drawn);
    drawn.collect()
}

/// Draws a sheet and writes its file.
fn file(out: &Path, sheet: &Sheet, format: Format) -> Result<PathBuf> {
    match format {
        Format::Png => {
            let path = out.join(format!("{}.png", sheet.name));
            canvas::png(sheet.size, &sheet.paint).map_err(Error::io("draw", &path))?.write_png(&path, &[])?;
            Ok(path)
        }
        Format::Svg => {
            let path = out.join(format!("{}.svg", sheet.name));
            let document = canvas::svg(sheet.size, &sheet.paint).map_err(Error::io("draw", &path))?;
            atomic_write_bytes(&path, document.as_bytes())?;
            Ok(path)
        }
    }
}
