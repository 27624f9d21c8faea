//! The numbers of layers that a plan smooths ([`Smoothing`]).

use std::collections::BTreeMap;

use taq_policy::PolicyPlan;

use crate::artifacts::Npz;
use crate::plan::{QuantConfig, SmoothQuant};
use crate::quant::{Smoothing, activation_qmax, to_vec};
use crate::{Error, Result};

use super::Session;

/// Puts factors of all layers that the policy wants smoothed into the plan, and what their inputs reach then.
pub(super) fn smooth(session: &Session, plan: &PolicyPlan, config: &mut QuantConfig) -> Result<()> {
    let smoothed: Vec<_> = plan.layers.iter().filter_map(|l| Some((&l.id, l.smoothquant_alpha?))).collect();
    if smoothed.is_empty() {
        return Ok(());
    }
    // By step and layer, how far each channel reaches.
    let mut reaches: BTreeMap<usize, Vec<Vec<f32>>> = BTreeMap::new();
    for &step in config.per_timestep.keys() {
        let npz = Npz::open(&session.run.step_stats(step))?;
        let of_layer = |(id, _): &(&crate::LayerId, f32)| {
            let inputs = session.model.spec().layer(id).map_or(0, |l| l.in_features);
            let name = |field: &str| format!("{}__{field}", id.array_prefix());
            let low: Vec<f32> = npz.vec(&name("avg_min"), &[inputs])?;
            let high: Vec<f32> = npz.vec(&name("avg_max"), &[inputs])?;
            Ok(low.iter().zip(&high).map(|(l, h)| l.abs().max(h.abs())).collect())
        };
        reaches.insert(step, smoothed.iter().map(of_layer).collect::<Result<_>>()?);
    }
    for (at, &(id, alpha)) in smoothed.iter().enumerate() {
        session.cx.check()?;
        let weight = to_vec(&session.model.weight(id)?.abs()?.max_axes(&[0], None)?)?;
        let mut input = vec![0.0_f32; weight.len()];
        for reach in reaches.values() {
            input.iter_mut().zip(&reach[at]).for_each(|(most, r)| *most = most.max(*r));
        }
        let factors = Smoothing::of(alpha, &input, &weight)
            .map_err(|_| Error::NotFinite { what: format!("the statistics or the weight of {id}") })?;
        for (step, grids) in &mut config.per_timestep {
            let Some(grid) = grids.get_mut(id) else { continue };
            let most = reaches[step][at].iter().zip(factors.factors()).map(|(r, m)| r / m);
            // As for a layer that saw only zeros.
            grid.absmax = most.fold(f32::MIN_POSITIVE * 1e6, f32::max);
            grid.scale = grid.absmax / activation_qmax(grid.bits)?;
        }
        let scale = factors.factors().to_vec();
        config.smoothquant.insert(id.clone(), SmoothQuant { alpha, scale });
    }
    Ok(())
}
