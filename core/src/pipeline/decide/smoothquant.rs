//! The numbers of layers that a plan smooths ([`Smoothing`]).

use std::collections::BTreeMap;

use taq_policy::{LayerPlan, PolicyPlan};

use crate::artifacts::Npz;
use crate::plan::{QuantConfig, SmoothQuant};
use crate::quant::{Smoothing, activation_qmax, to_vec};
use crate::{Error, Result};

use super::{Session, channel_absmax};

/// Puts factors of all layers that the policy wants smoothed into the plan, and what their inputs reach then.
pub(super) fn smooth(session: &Session, plan: &PolicyPlan, config: &mut QuantConfig) -> Result<()> {
    let spec = session.model.spec();
    let layer = |l: &LayerPlan| Some((spec.layer(&l.id)?, l.smoothquant_alpha?));
    let smoothed: Vec<_> = plan.layers.iter().filter_map(layer).collect();
    if smoothed.is_empty() {
        return Ok(());
    }
    // By step and layer, how far each channel reaches.
    let mut reaches: BTreeMap<usize, Vec<Vec<f32>>> = BTreeMap::new();
    for &step in config.per_timestep.keys() {
        let npz = Npz::open(&session.run.step_stats(step))?;
        let of_layers = smoothed.iter().map(|(layer, _)| channel_absmax(&npz, layer));
        reaches.insert(step, of_layers.collect::<Result<_>>()?);
    }
    for (at, &(layer, alpha)) in smoothed.iter().enumerate() {
        let id = &layer.id;
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
