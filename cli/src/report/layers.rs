//! The layers and timesteps that everything is ordered by, and the table of layers.

use taq_core::LayerId;
use taq_core::stats::quantile_f64;

use super::inputs::Inputs;
use super::numbers::text;
use crate::results::layers::sort;
use crate::results::sources::Sources;
use crate::results::statistics::variability;

/// Rows and columns of every map.
#[derive(Default)]
pub(super) struct Axes {
    pub(super) ids: Vec<LayerId>,
    /// Steps with their σ, from noise to image.
    pub(super) steps: Vec<(usize, f64)>,
}

impl Axes {
    /// Of the statistics; before `observe`, of the plan; without either, of the rounded weights.
    pub(super) fn of(sources: &Sources) -> Self {
        if let Ok(statistics) = sources.statistics() {
            let steps = statistics.steps.iter().map(|s| (s.step, s.sigma)).collect();
            return Self { ids: statistics.layers.clone(), steps };
        }
        let mut axes = Self::default();
        if let Ok(plan) = sources.plan() {
            axes.ids.extend(plan.weight_bits.keys().cloned());
            let sigma = |step: &usize| plan.sigma_map.get(step).copied().unwrap_or(0.0);
            axes.steps.extend(plan.per_timestep.keys().map(|step| (*step, f64::from(sigma(step)))));
            axes.steps.sort_by(|a, b| b.1.total_cmp(&a.1));
        } else if let Ok(weights) = sources.weights() {
            axes.ids.extend(weights.block_metrics.iter().flat_map(|b| b.layers.keys().cloned()));
        }
        sort(&mut axes.ids);
        axes
    }
}

/// One layer at a glance; a cell is empty where its stage is not done.
pub(super) struct LayerRow {
    pub(super) id: String,
    pub(super) weight_bits: String,
    pub(super) input_bits: String,
    pub(super) absmax: String,
    pub(super) variability: String,
    pub(super) outliers: String,
    pub(super) shift: &'static str,
}

/// A row a layer.
pub(super) fn rows(sources: &Sources, axes: &Axes, inputs: Option<&Inputs>) -> Vec<LayerRow> {
    let (statistics, plan) = (sources.statistics().ok(), sources.plan().ok());
    let row = |(index, id): (usize, &LayerId)| {
        let absmax = statistics.map(|s| s.row(id, |s| f64::from(s.tensor_absmax)));
        let channels = inputs.map(|i| &i.of_layer(index).channels);
        let grids = plan.into_iter().flat_map(|p| p.per_timestep.values().filter_map(|at| at.get(id)));
        let grids: Vec<_> = grids.collect();
        let bits: Vec<f64> = grids.iter().map(|g| f64::from(g.bits)).collect();
        let filled = |value: Option<String>| value.unwrap_or_default();
        LayerRow {
            id: id.as_str().to_owned(),
            weight_bits: filled(plan.and_then(|p| p.weight_bits.get(id)).map(u8::to_string)),
            input_bits: widths(&bits),
            absmax: filled(absmax.as_ref().and_then(|row| quantile_f64(row, 1.0)).map(text)),
            variability: filled(absmax.as_ref().map(|row| format!("{:.1} ×", variability(row)))),
            outliers: filled(channels.map(|c| format!("{} of {}", c.outliers, c.count))),
            shift: if grids.iter().any(|g| g.shift) { "yes" } else { "" },
        }
    };
    axes.ids.iter().enumerate().map(row).collect()
}

/// `8`; `4–8, 6.52 on average` where they differ over the steps.
fn widths(bits: &[f64]) -> String {
    let (Some(low), Some(high)) = (quantile_f64(bits, 0.0), quantile_f64(bits, 1.0)) else {
        return String::new();
    };
    if low == high {
        return format!("{low}");
    }
    format!("{low}–{high}, {:.2} on average", bits.iter().sum::<f64>() / bits.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_one_number_where_they_are_equal() {
        assert_eq!(widths(&[8.0, 8.0]), "8");
        assert_eq!(widths(&[8.0, 4.0, 6.0, 4.0]), "4–8, 5.50 on average");
        assert_eq!(widths(&[]), "");
    }
}
