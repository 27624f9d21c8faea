//! `heatmap_range`, `heatmap_mean`, `heatmap_std`, `negative_fraction_heatmap`: layers and steps as a table.

use taq_core::Result;

use super::Sheet;
use crate::plot::Choice;
use crate::plot::heatmap::{Heatmap, Scale, extent};
use crate::results::moments::{AROUND_ZERO, Moments};
use crate::results::sources::Sources;
use crate::results::statistics::{Statistics, range};

/// A row a layer, a column a step.
type Table = Vec<Vec<Option<f64>>>;

const FROM_HISTOGRAMS: &str = "Computed from the histograms of the values, each bin taken as evenly filled.";

pub(super) fn ranges(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let rows = statistics.table(range);
    let values: Table = rows.into_iter().map(|row| row.into_iter().map(Some).collect()).collect();
    let scale = Scale::log(&values);
    let (title, unit) = ("Range of the layers' inputs", "largest − smallest value");
    Ok(vec![sheet(statistics, "heatmap_range", title, "", unit, values, scale)])
}

pub(super) fn mean(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let Some(values) = table(statistics, |m| Some(m.mean))? else { return Ok(Vec::new()) };
    let scale = Scale::around(&values);
    let title = "Mean of the layers' inputs";
    Ok(vec![sheet(statistics, "heatmap_mean", title, FROM_HISTOGRAMS, "mean", values, scale)])
}

pub(super) fn std(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let Some(values) = table(statistics, |m| Some(m.std))? else { return Ok(Vec::new()) };
    let scale = Scale::log(&values);
    let (title, unit) = ("Standard deviation of the layers' inputs", "standard deviation");
    Ok(vec![sheet(statistics, "heatmap_std", title, FROM_HISTOGRAMS, unit, values, scale)])
}

pub(super) fn negative_fraction(sources: &Sources, _: &Choice) -> Result<Vec<Sheet>> {
    let statistics = sources.statistics()?;
    let Some(values) = table(statistics, |m| Some(100.0 * m.known_negative()?))? else {
        return Ok(Vec::new());
    };
    let scale = Scale::Linear { low: 0.0, high: 100.0 };
    let (name, title) = ("negative_fraction_heatmap", "Share of negative values in the layers' inputs");
    let about = format!(
        "{FROM_HISTOGRAMS} Grey: not known, for over {:.0} % of the values lie in the one bin that 0 lies in.",
        100.0 * AROUND_ZERO
    );
    Ok(vec![sheet(statistics, name, title, &about, "negative values, %", values, scale)])
}

/// One of the moments of every layer at every step; `None` if there are no histograms at all.
fn table(statistics: &Statistics, value: impl Fn(Moments) -> Option<f64>) -> Result<Option<Table>> {
    let cell = |position, layer| {
        let histogram = statistics.histogram(position, layer)?;
        Ok(histogram.and_then(|h| Moments::of(&h)).and_then(&value))
    };
    let row = |layer| (0..statistics.steps.len()).map(|at| cell(at, layer)).collect::<Result<Vec<_>>>();
    let table = statistics.layers.iter().map(row).collect::<Result<Table>>()?;
    Ok(table.iter().flatten().any(Option::is_some).then_some(table))
}

fn sheet(
    statistics: &Statistics,
    name: &str,
    title: &str,
    about: &str,
    unit: &str,
    values: Table,
    scale: Scale,
) -> Sheet {
    let heatmap = Heatmap {
        title: title.into(),
        about: format!("{} {about}", extent(&values)).trim_end().to_owned(),
        rows: statistics.layers.iter().map(|id| id.as_str().to_owned()).collect(),
        columns: statistics.sigma_labels(),
        values,
        unit: unit.into(),
        scale,
    };
    Sheet::new(name, heatmap.size(), move |area| heatmap.paint(area))
}
