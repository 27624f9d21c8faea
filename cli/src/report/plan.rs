//! The plan in a few lines.

use std::collections::{BTreeMap, BTreeSet};

use taq_core::plan::QuantConfig;

use crate::results::statistics::Statistics;

/// How much of the model has so many bits.
pub(super) struct WidthRow {
    pub(super) bits: u8,
    /// Layers whose weight has them.
    pub(super) weights: String,
    /// Of the inputs at all timesteps, then in each bucket.
    pub(super) inputs: Vec<String>,
}

/// The section.
pub(super) struct PlanView {
    pub(super) policy: String,
    pub(super) averages: String,
    pub(super) decisions: String,
    pub(super) shifted: usize,
    /// `all steps`, and the parts of the schedule.
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<WidthRow>,
}

impl PlanView {
    pub(super) fn of(plan: &QuantConfig, statistics: Option<&Statistics>) -> Self {
        let mut parts: Vec<(String, [f32; 2])> = vec![("all steps".into(), [0.0, 1.0])];
        let mut buckets: Vec<_> = statistics.iter().flat_map(|s| &s.index.bucket_definitions).collect();
        buckets.sort_by(|a, b| b.1[1].total_cmp(&a.1[1]));
        parts.extend(
            buckets.into_iter().map(|(name, ends)| (format!("{name}, σ {} to {}", ends[1], ends[0]), *ends)),
        );
        let counts: Vec<BTreeMap<u8, usize>> = parts.iter().map(|(_, ends)| decisions(plan, *ends)).collect();
        let used: BTreeSet<u8> =
            counts.iter().flat_map(|c| c.keys().copied()).chain(plan.weight_bits.values().copied()).collect();
        let row = |&bits: &u8| WidthRow {
            bits,
            weights: share(plan.weight_bits.values().filter(|b| **b == bits).count(), plan.weight_bits.len()),
            inputs: counts
                .iter()
                .map(|c| share(c.get(&bits).copied().unwrap_or(0), c.values().sum()))
                .collect(),
        };
        let s = &plan.summary;
        Self {
            policy: plan.policy.clone(),
            averages: format!(
                "{:.2} bits for weights (over parameters), {:.2} for inputs (over layers and steps)",
                s.average_weight_bits, s.average_activation_bits
            ),
            decisions: format!("{} layers × {} timesteps", s.total_layers, s.total_timesteps),
            shifted: s.post_gelu_layers_with_shift,
            columns: parts.into_iter().map(|(name, _)| name).collect(),
            rows: used.iter().map(row).collect(),
        }
    }
}

/// How many inputs have each width at the steps between these σ. Where two parts meet, σ belongs to the upper one.
fn decisions(plan: &QuantConfig, [low, high]: [f32; 2]) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for (step, grids) in &plan.per_timestep {
        let inside =
            plan.sigma_map.get(step).is_some_and(|&s| s >= low && (s < high || (high >= 1.0 && s >= high)));
        if inside {
            grids.values().for_each(|g| *counts.entry(g.bits).or_insert(0) += 1);
        }
    }
    counts
}

/// `12 of 69, 17 %`; nothing of nothing.
fn share(count: usize, of: usize) -> String {
    match (count, of) {
        (0, _) | (_, 0) => "–".into(),
        _ => format!("{count} ({:.0} %)", 100.0 * count as f64 / of as f64),
    }
}

#[cfg(test)]
mod tests {
    use taq_core::plan::ActivationGrid;

    use super::*;
    use taq_core::plan::{PlanSummary, QUANT_CONFIG_FORMAT};

    #[test]
    fn every_decision_is_counted_in_one_part_of_the_schedule() {
        let grid = |bits| ActivationGrid { bits, absmax: 1.0, scale: 0.1, shift: false };
        let at = |bits: [u8; 2]| [("a".into(), grid(bits[0])), ("b".into(), grid(bits[1]))].into();
        let plan = QuantConfig {
            format: QUANT_CONFIG_FORMAT.into(),
            model: String::new(),
            policy: "p".into(),
            weight_bits: [("a".into(), 4), ("b".into(), 8)].into(),
            per_timestep: [(0, at([8, 8])), (1, at([8, 4])), (2, at([4, 4]))].into(),
            smoothquant: Default::default(),
            sigma_map: [(0, 1.0), (1, 0.7), (2, 0.1)].into(),
            summary: PlanSummary {
                total_timesteps: 3,
                total_layers: 2,
                total_decisions: 6,
                average_weight_bits: 6.0,
                average_activation_bits: 6.0,
                post_gelu_layers_with_shift: 0,
            },
        };
        assert_eq!(decisions(&plan, [0.0, 1.0]), [(4, 3), (8, 3)].into());
        assert_eq!(decisions(&plan, [0.7, 1.0]), [(4, 1), (8, 3)].into());
        assert_eq!(decisions(&plan, [0.3, 0.7]), [].into());
        let view = PlanView::of(&plan, None);
        let rows: Vec<_> =
            view.rows.iter().map(|r| (r.bits, r.weights.as_str(), r.inputs[0].as_str())).collect();
        assert_eq!(rows, [(4, "1 (50 %)", "3 (50 %)"), (8, "1 (50 %)", "3 (50 %)")]);
    }
}
