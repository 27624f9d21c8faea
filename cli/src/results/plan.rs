//! A plan as a table.

use taq_core::LayerId;
use taq_core::plan::QuantConfig;

/// Steps with σ falling, and the bits of each layer at each of them.
pub(crate) fn bits_table(plan: &QuantConfig, ids: &[LayerId]) -> (Vec<usize>, Vec<Vec<Option<u8>>>) {
    let mut steps: Vec<usize> = plan.per_timestep.keys().copied().collect();
    let sigma = |step: &usize| plan.sigma_map.get(step).copied().unwrap_or(0.0);
    steps.sort_by(|a, b| sigma(b).total_cmp(&sigma(a)));
    let bits = |id: &LayerId, step: &usize| plan.per_timestep[step].get(id).map(|grid| grid.bits);
    let table = ids.iter().map(|id| steps.iter().map(|step| bits(id, step)).collect()).collect();
    (steps, table)
}

#[cfg(test)]
mod tests {
    use taq_core::plan::{ActivationGrid, PlanSummary, QUANT_CONFIG_FORMAT};

    use super::*;

    #[test]
    fn steps_run_from_noise_to_image_and_gaps_stay_gaps() {
        let grid = |bits| ActivationGrid { bits, absmax: 1.0, scale: 0.1, shift: false };
        let at = |cells: &[(&str, u8)]| cells.iter().map(|&(id, b)| (id.into(), grid(b))).collect();
        let plan = QuantConfig {
            format: QUANT_CONFIG_FORMAT.into(),
            model: String::new(),
            policy: "p".into(),
            weight_bits: [("a".into(), 4), ("b".into(), 8)].into(),
            per_timestep: [(0, at(&[("a", 4), ("b", 6)])), (9, at(&[("a", 8)]))].into(),
            smoothquant: Default::default(),
            sigma_map: [(0, 0.25), (9, 1.0)].into(),
            summary: PlanSummary {
                total_timesteps: 2,
                total_layers: 2,
                total_decisions: 4,
                average_weight_bits: 6.0,
                average_activation_bits: 6.0,
                post_gelu_layers_with_shift: 0,
            },
        };
        let (steps, table) = bits_table(&plan, &["a".into(), "b".into()]);
        assert_eq!(steps, [9, 0]);
        assert_eq!(table, [[Some(8), Some(4)], [None, Some(6)]]);
    }
}
