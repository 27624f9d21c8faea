//! Maps: a number for every layer and timestep.

use serde::Serialize;
use taq_core::Result;
use taq_core::plan::QuantConfig;
use taq_core::stats::LayerScalars;

use super::layers::Axes;
use super::numbers::short;
use crate::results::moments::{AROUND_ZERO, Moments};
use crate::results::statistics::{Statistics, range};

/// How numbers become colours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scale {
    Linear,
    Log,
    /// 0 in the middle.
    Diverging,
    /// Two to eight, whole numbers.
    Bits,
}

/// One map.
#[derive(Debug, Serialize)]
pub(super) struct Map {
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) about: String,
    pub(super) scale: Scale,
    /// Names of the columns; absent where they are the timesteps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) columns: Option<Vec<String>>,
    /// A row a layer; `null` where nothing is known.
    pub(super) rows: Vec<Vec<Option<f64>>>,
}

impl Map {
    fn new(title: &str, unit: &str, about: &str, scale: Scale, rows: Vec<Vec<Option<f64>>>) -> Self {
        Self { title: title.into(), unit: unit.into(), about: about.into(), scale, columns: None, rows }
    }

    fn is_known(&self) -> bool {
        self.rows.iter().flatten().any(Option::is_some)
    }
}

const FROM_HISTOGRAMS: &str = "Computed from the histograms, each bin taken as evenly filled.";

/// The maps of activations.
pub(super) fn of_statistics(statistics: &Statistics) -> Result<Vec<Map>> {
    let scalars = |value: fn(&LayerScalars) -> f64| {
        let rows = statistics.table(value);
        rows.into_iter().map(|row| row.into_iter().map(|v| Some(short(v))).collect()).collect()
    };
    let mut moments: Vec<Vec<Option<Moments>>> = Vec::new();
    for layer in &statistics.layers {
        let at = |at| Ok(statistics.histogram(at, layer)?.as_ref().and_then(Moments::of));
        moments.push((0..statistics.steps.len()).map(at).collect::<Result<_>>()?);
    }
    let of_moments = |value: fn(&Moments) -> Option<f64>| {
        let cell = |m: &Option<Moments>| m.as_ref().and_then(value).map(short);
        moments.iter().map(|row| row.iter().map(cell).collect()).collect()
    };
    let negative = format!(
        "{FROM_HISTOGRAMS} Grey: not known, for over {:.0} % of the values lie in the one bin that 0 lies in.",
        100.0 * AROUND_ZERO
    );
    let maps = vec![
        Map::new("Range", "largest − smallest value", "", Scale::Log, scalars(range)),
        Map::new("Largest magnitude", "|x|", "", Scale::Log, scalars(|s| s.tensor_absmax.into())),
        Map::new(
            "Reach of outliers",
            "largest ÷ median channel",
            "Largest magnitude of all channels over that of the median channel.",
            Scale::Log,
            statistics
                .table(|s| f64::from(s.channel_max) / f64::from(s.channel_p50))
                .into_iter()
                .map(|row| row.into_iter().map(|v| v.is_finite().then(|| short(v))).collect())
                .collect(),
        ),
        Map::new("Mean", "mean", FROM_HISTOGRAMS, Scale::Diverging, of_moments(|m| Some(m.mean))),
        Map::new(
            "Standard deviation",
            "standard deviation",
            FROM_HISTOGRAMS,
            Scale::Log,
            of_moments(|m| Some(m.std)),
        ),
        Map::new(
            "Negative values",
            "%",
            &negative,
            Scale::Linear,
            of_moments(|m| Some(100.0 * m.known_negative()?)),
        ),
    ];
    Ok(maps.into_iter().filter(Map::is_known).collect())
}

/// The map of a plan's bits.
pub(super) fn of_plan(plan: &QuantConfig, axes: &Axes) -> Map {
    let bits = |id, step| Some(f64::from(plan.per_timestep.get(step)?.get(id)?.bits));
    let row = |id| axes.steps.iter().map(|(step, _)| bits(id, step)).collect();
    let about = format!("Bits of the layers' inputs, by {}.", plan.policy);
    Map::new("Bits of the plan", "bits", &about, Scale::Bits, axes.ids.iter().map(row).collect())
}
