//! Three tiers of activation bits, A4, A6 and A8, chosen for every layer at every timestep.
//!
//! After `analyze_activations_multitier.py` of sean-seowon-yi/time-aware-MLXSD-quantization (branch
//! `pipeline`), whose thresholds are the defaults here. The step size of a grid is its clipping range over
//! its levels, so the tier follows from the range: what reaches far needs more levels. Two corrections
//! follow.
//!
//! - *Guard.* Where the channels' largest magnitudes differ much, their 99 % quantile being many times their
//!   median, most channels use few of the grid's levels: one tier up. Not for what comes out of GELU, where
//!   many channels are next to zero by nature.
//! - *SmoothQuant* (arXiv 2211.10438), off by default. Where few channels stand out far, their magnitude can
//!   move into the weights: one tier down. As in the ancestor the first timestep says which layers these are.
//!
//! Four things differ from the ancestor. Shifted layers are judged by what is left after the shift (it took the
//! range before). The guard, which it computed but did not use, acts. SmoothQuant lowers every timestep that
//! shows the spike, not only the first one. And “few channels” counts those that stand out; the ancestor counted
//! the channels above the 99 % quantile, which are one in a hundred whatever the layer.

mod rules;
mod settings;

use taq_policy::{
    LayerColumns, LayerPlan, LayerSpec, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, export_policy,
    guest,
};

pub use settings::Settings;

/// What the policy says of itself.
pub fn info() -> PolicyInfo {
    PolicyInfo::new(
        "multitier",
        env!("CARGO_PKG_VERSION"),
        "A4, A6 or A8 by layer and timestep, from clipping magnitudes and outliers.",
    )
    .with_settings_schema(include_str!("../settings.schema.json"))
}

/// The plan.
///
/// # Errors
/// Settings that are unknown or out of range, or statistics that are missing.
pub fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
    let settings: Settings = guest::settings(request)?;
    settings.check().map_err(guest::refused_settings)?;
    let weight = Width::find("W", settings.bits_w, &request.weight_bits)?;
    let mut tiers = [weight; 3];
    for (tier, &bits) in tiers.iter_mut().zip(&settings.tiers) {
        *tier = Width::find("A", bits, &request.activation_bits)?;
    }
    let measured = request.measured()?;
    let layers = measured.iter().map(|(layer, columns)| plan(&settings, weight, tiers, layer, columns));
    Ok(PolicyPlan::new(layers.collect()))
}

fn plan(
    s: &Settings,
    weight: Width,
    tiers: [Width; 3],
    layer: &LayerSpec,
    columns: &LayerColumns,
) -> LayerPlan {
    let rules = rules::Rules::new(s, layer, columns);
    let decisions: Vec<rules::Decision> = (0..columns.absmax.len()).map(|at| rules.decide(at)).collect();
    let count = |f: fn(&rules::Decision) -> bool| decisions.iter().filter(|d| f(d)).count();
    let (raised, lowered) = (count(|d| d.raised), count(|d| d.lowered));

    let mut reasons = Vec::new();
    let steps = decisions.len();
    if raised > 0 {
        reasons.push(format!(
            "{raised} of {steps} timesteps one tier up: p99/p50 over channels above {}",
            s.outlier_ratio
        ));
    }
    if rules.smooth() {
        reasons.push(format!("SmoothQuant, {lowered} of {steps} timesteps one tier down"));
    }
    reasons.extend(weight.note());
    let used = |tier: usize| decisions.iter().any(|d| d.tier == tier);
    reasons.extend((0..3).filter(|&t| used(t)).filter_map(|t| tiers[t].note()));

    LayerPlan {
        id: layer.id.clone(),
        weight_bits: weight.bits,
        activation_bits: decisions.iter().map(|d| tiers[d.tier].bits).collect(),
        scale_source: s.scale_source,
        shift: rules.shifted(),
        smoothquant_alpha: rules.smooth().then_some(s.smoothquant_alpha),
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
    }
}

/// Bits that were asked for, and those that the request allows.
#[derive(Debug, Clone, Copy)]
struct Width {
    of: &'static str,
    wanted: u8,
    bits: u8,
}

impl Width {
    /// The wanted bits, or the next wider that are allowed, or the widest if all are narrower.
    fn find(of: &'static str, wanted: u8, allowed: &[u8]) -> Result<Self, PolicyError> {
        let wider = allowed.iter().filter(|&&bits| bits >= wanted).min();
        match wider.or(allowed.iter().max()) {
            Some(&bits) => Ok(Self { of, wanted, bits }),
            None => Err(PolicyError::new(format!("the request allows no bits for {of}{wanted}"))),
        }
    }

    fn note(&self) -> Option<String> {
        let Self { of, wanted, bits } = self;
        (wanted != bits).then(|| format!("{of}{wanted} is not allowed: {of}{bits}"))
    }
}

export_policy!(info, assign);

#[cfg(test)]
mod tests;
