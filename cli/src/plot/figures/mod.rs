//! The figures: one file each, which turns statistics, a plan or rounded weights into sheets.

mod bits;
mod channel_distribution;
mod channel_ranges;
mod distributions;
mod heatmaps;
mod held_out_error;
mod histogram;
mod integers;
mod loss_curves;
mod range_vs_timestep;
mod snapshot_bars;
mod temporal_lines;
mod variability;

use taq_core::Result;

use super::Choice;
use super::canvas::{Area, Painted};
use crate::results::sources::Sources;

/// One file: its name without an extension, its size in pixels, and how it is drawn.
pub(super) struct Sheet {
    pub(super) name: String,
    pub(super) size: (u32, u32),
    pub(super) paint: Box<dyn Fn(&Area<'_>) -> Painted + Send + Sync>,
}

impl Sheet {
    fn new(
        name: impl Into<String>,
        size: (u32, u32),
        paint: impl Fn(&Area<'_>) -> Painted + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), size, paint: Box::new(paint) }
    }
}

/// What a figure is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Statistics,
    Plan,
    Weights,
}

/// A kind of figure.
pub(super) struct Figure {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What it shows, for people.
    pub(super) about: &'static str,
    pub(super) from: From,
    /// Whether it is drawn unless it is asked for.
    pub(super) usual: bool,
    /// Why there may be nothing to draw.
    pub(super) nothing: &'static str,
    pub(super) sheets: fn(&Sources, &Choice) -> Result<Vec<Sheet>>,
}

const NO_HISTOGRAMS: &str = "the statistics hold no histograms; choose an observer that keeps them";

/// All figures, in the order in which they are drawn.
pub(super) const FIGURES: [Figure; 16] = [
    Figure {
        name: "range-vs-timestep",
        about: "range of every layer's input over the noise level",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: range_vs_timestep::sheets,
    },
    Figure {
        name: "snapshot-bars",
        about: "largest magnitude of every layer's input at a few steps",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: snapshot_bars::sheets,
    },
    Figure {
        name: "temporal-lines",
        about: "magnitudes of chosen layers' inputs over the noise level",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: temporal_lines::sheets,
    },
    Figure {
        name: "heatmap-range",
        about: "range by layer and step",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: heatmaps::ranges,
    },
    Figure {
        name: "heatmap-mean",
        about: "mean by layer and step",
        from: From::Statistics,
        usual: true,
        nothing: NO_HISTOGRAMS,
        sheets: heatmaps::mean,
    },
    Figure {
        name: "heatmap-std",
        about: "standard deviation by layer and step",
        from: From::Statistics,
        usual: true,
        nothing: NO_HISTOGRAMS,
        sheets: heatmaps::std,
    },
    Figure {
        name: "negative-fraction",
        about: "share of negative values by layer and step",
        from: From::Statistics,
        usual: true,
        nothing: NO_HISTOGRAMS,
        sheets: heatmaps::negative_fraction,
    },
    Figure {
        name: "variability",
        about: "how much each layer's range changes over the steps, against how large it is",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: variability::sheets,
    },
    Figure {
        name: "histogram",
        about: "values of chosen layers' inputs with the shift and the grid of the plan",
        from: From::Statistics,
        usual: true,
        nothing: NO_HISTOGRAMS,
        sheets: histogram::sheets,
    },
    Figure {
        name: "channel-ranges",
        about: "smallest and largest value of every channel of chosen layers",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: channel_ranges::sheets,
    },
    Figure {
        name: "channel-distribution",
        about: "magnitude of every channel of chosen layers, the top 2 % marked",
        from: From::Statistics,
        usual: true,
        nothing: "there are no layers",
        sheets: channel_distribution::sheets,
    },
    Figure {
        name: "distributions",
        about: "the whole distribution of chosen layers' inputs over the noise level",
        from: From::Statistics,
        usual: false,
        nothing: NO_HISTOGRAMS,
        sheets: distributions::sheets,
    },
    Figure {
        name: "bits",
        about: "bits of every layer's input at every step, and of its weight",
        from: From::Plan,
        usual: true,
        nothing: "the plan has no layers",
        sheets: bits::sheets,
    },
    Figure {
        name: "loss-curves",
        about: "training loss of every block",
        from: From::Weights,
        usual: true,
        nothing: "the rounder learned nothing, so there are no losses",
        sheets: loss_curves::sheets,
    },
    Figure {
        name: "held-out-error",
        about: "error of every block on held-out rows, rounded to nearest and as chosen",
        from: From::Weights,
        usual: true,
        nothing: "no block was rounded",
        sheets: held_out_error::sheets,
    },
    Figure {
        name: "integers",
        about: "how often each integer occurs in every layer's weight",
        from: From::Weights,
        usual: true,
        nothing: "no block was rounded",
        sheets: integers::sheets,
    },
];
