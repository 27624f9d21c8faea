//! Sensitivities: how much the output suffers from each layer.

use std::collections::BTreeSet;

use taq_core::LayerId;
use taq_core::pipeline::{Sensitivities, SensitivityEntry};

use super::layers::Axes;
use super::maps::{Map, Scale};
use super::numbers::{decibels, short};

/// One layer.
pub(super) struct Row {
    pub(super) id: String,
    /// One for each column, in dB.
    pub(super) errors: Vec<String>,
}

/// The table.
pub(super) struct SensitivityView {
    pub(super) about: String,
    /// `W2` … `A8`.
    pub(super) columns: Vec<String>,
    /// Most sensitive first, by the narrowest weights.
    pub(super) rows: Vec<Row>,
    /// Spearman's ρ of the estimate, by column.
    pub(super) ranks: Vec<String>,
}

/// Widths that were measured: weights, then inputs.
fn widths(document: &Sensitivities) -> Vec<(bool, u8)> {
    let widths: BTreeSet<(bool, u8)> = document.entries.iter().map(|e| (!e.weight, e.bits)).collect();
    widths.into_iter().map(|(input, bits)| (!input, bits)).collect()
}

fn label((weight, bits): (bool, u8)) -> String {
    format!("{}{bits}", if weight { 'W' } else { 'A' })
}

fn find<'a>(
    document: &'a Sensitivities,
    id: &str,
    (weight, bits): (bool, u8),
) -> Option<&'a SensitivityEntry> {
    document.of(weight, bits).find(|e| e.id.as_str() == id)
}

/// The map: a column a width.
pub(super) fn map(document: &Sensitivities, axes: &Axes) -> Option<Map> {
    let widths = widths(document);
    let cell = |id: &LayerId, width: &(bool, u8)| {
        let error = find(document, id.as_str(), *width)?.measured.followed();
        (error > 0.0).then(|| short(error))
    };
    let row = |id| widths.iter().map(|width| cell(id, width)).collect();
    (!widths.is_empty()).then(|| Map {
        title: "Sensitivities".into(),
        unit: "relative squared error of the output".into(),
        about: "Error of the model's output when this layer's weight (W) or input (A) alone has so many bits. Grey: \
                not measured, or no error."
            .into(),
        scale: Scale::Log,
        columns: Some(widths.iter().map(|w| label(*w)).collect()),
        rows: axes.ids.iter().map(row).collect(),
    })
}

impl SensitivityView {
    /// `None` if nothing was measured.
    pub(super) fn of(document: &Sensitivities) -> Option<Self> {
        let widths = widths(document);
        let first = *widths.first()?;
        let mut ranked: Vec<&SensitivityEntry> = document.of(first.0, first.1).collect();
        ranked.sort_by(|a, b| b.measured.followed().total_cmp(&a.measured.followed()));
        let errors = |id: &str| {
            let error = |w: &(bool, u8)| find(document, id, *w).map(|e| decibels(e.measured.followed()));
            widths.iter().map(|w| error(w).unwrap_or_default()).collect()
        };
        let row = |e: &&SensitivityEntry| Row { id: e.id.to_string(), errors: errors(e.id.as_str()) };
        let rank = |&(weight, bits): &(bool, u8)| {
            let found = document.rank_correlation.iter().find(|r| (r.weight, r.bits) == (weight, bits));
            found.and_then(|r| r.rho).map_or_else(String::new, |rho| format!("{rho:.3}"))
        };
        Some(Self {
            about: format!(
                "Measured on {} images at {} timesteps, guidance {}.",
                document.num_images,
                document.sigma_map.len(),
                document.cfg_weight
            ),
            columns: widths.iter().map(|w| label(*w)).collect(),
            rows: ranked.iter().map(row).collect(),
            ranks: widths.iter().map(rank).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use taq_core::pipeline::{OutputError, OutputErrors, RankCorrelation};

    use super::*;

    fn document() -> Sensitivities {
        let entry = |id: &str, weight, bits, error| {
            let errors =
                OutputErrors { velocity: OutputError { all: error, buckets: [].into() }, guided: None };
            SensitivityEntry { id: id.into(), weight, bits, measured: errors.clone(), estimated: errors }
        };
        Sensitivities {
            format: String::new(),
            model: String::new(),
            num_images: 4,
            sigma_map: [(0, 1.0), (3, 0.5)].into(),
            bucket_definitions: [].into(),
            cfg_weight: 4.0,
            probes: 4,
            entries: vec![
                entry("a", true, 2, 0.001),
                entry("a", false, 4, 0.1),
                entry("b", true, 2, 0.01),
                entry("b", false, 4, 0.0),
            ],
            rank_correlation: vec![RankCorrelation { weight: true, bits: 2, rho: Some(0.5) }],
        }
    }

    #[test]
    fn weights_come_before_inputs_and_the_most_sensitive_layer_first() {
        let view = SensitivityView::of(&document()).unwrap();
        assert_eq!(view.columns, ["W2", "A4"]);
        let rows: Vec<_> = view.rows.iter().map(|r| (r.id.as_str(), r.errors.clone())).collect();
        assert_eq!(rows[0], ("b", vec!["−20.0 dB".to_owned(), "none".to_owned()]));
        assert_eq!(rows[1], ("a", vec!["−30.0 dB".to_owned(), "−10.0 dB".to_owned()]));
        assert_eq!(view.ranks, ["0.500", ""]);
    }

    #[test]
    fn the_map_follows_the_axes_and_has_gaps() {
        let axes = Axes { ids: vec!["b".into(), "c".into(), "a".into()], steps: Vec::new() };
        let map = map(&document(), &axes).unwrap();
        assert_eq!(map.rows, [vec![Some(0.01), None], vec![None, None], vec![Some(0.001), Some(0.1)]]);
        assert_eq!(map.columns.unwrap(), ["W2", "A4"]);
    }
}
