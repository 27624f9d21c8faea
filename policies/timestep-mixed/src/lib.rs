//! Widths of inputs by layer and timestep for a given average of bits, where every layer changes its width only a few times
//! along the schedule: a policy as research, in one file that taq did not have to know of.
//!
//! Activations of a diffusion model change with the timestep, and so does what an error in them does. PTQ4DM (Shang et al.,
//! CVPR 2023) and Q-Diffusion (Li et al., ICCV 2023) answer with calibration data from all timesteps, TaQ-DiT
//! (arXiv 2411.14172) with grids of each timestep's own, TMPQ-DM (Sun et al., arXiv 2404.09532) searches widths together with
//! the timesteps to keep, MixDQ (Zhao et al., ECCV 2024) allocates widths by measured sensitivity under a budget. Here:
//!
//! - `noise` predicts what quantizing one layer's input at one timestep does, granular and clipped, from quantiles;
//! - `runs` finds the best widths of one layer in at most so many *runs* of neighbouring timesteps, exactly. A kernel, or a
//!   table of scales, is then switched a few times in a trajectory and not at every step;
//! - `search` finds the price of a bit at which all layers together keep the average.
//!
//! With a run for every timestep it is the allocation of `budget` with another prediction.

mod noise;
mod runs;
mod search;
mod settings;

use taq_policy::{
    LayerPlan, LayerSpec, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, ScaleSource, export_policy,
    guest,
};

pub use settings::{Settings, Weighting};

/// What the policy says of itself.
pub fn info() -> PolicyInfo {
    PolicyInfo::new(
        "timestep-mixed",
        env!("CARGO_PKG_VERSION"),
        "Widths of inputs in a few runs along the schedule, for a given average of bits.",
    )
    .with_settings_schema(include_str!("../settings.schema.json"))
}

/// The plan.
///
/// # Errors
/// Settings that are unknown, out of range or cannot be met, or no statistics.
pub fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
    let settings: Settings = guest::settings(request)?;
    settings.check().map_err(guest::refused_settings)?;
    let widths = settings.widths(request)?;
    if !request.weight_bits.contains(&settings.weight_bits) {
        let (bits, allowed) = (settings.weight_bits, &request.weight_bits);
        return Err(PolicyError::new(format!("weight_bits: {bits} is not allowed, only {allowed:?}")));
    }
    let layers = noise::errors(request, &settings, &widths)?;
    let plans = search::within(&layers, &widths, settings.runs, settings.average_activation_bits)?;
    let plan = |(layer, (chosen, errors)): (&LayerSpec, (&search::Chosen, &noise::LayerErrors))| LayerPlan {
        weight_bits: settings.weight_bits,
        activation_bits: chosen.widths.iter().map(|&at| widths[at]).collect(),
        scale_source: errors.sources[chosen.source].0,
        shift: layer.post_gelu && settings.shift_post_gelu,
        reason: (errors.sources[chosen.source].0 != ScaleSource::Absmax)
            .then(|| "clips its outliers".to_owned()),
        ..LayerPlan::uniform(layer.id.clone(), 0, 0, 0)
    };
    Ok(PolicyPlan::new(request.layers.iter().zip(plans.iter().zip(&layers)).map(plan).collect()))
}

export_policy!(info, assign);

#[cfg(test)]
mod tests;
