//! The smallest predicted error for a given average of bits: “4.5 bits on average” as one setting.
//!
//! Two allocations, one for the weights of all layers and one for the activations of all layers and
//! timesteps. Each has a cost and a predicted error for every width (`predict`), and `allocate` spends
//! the budget where a bit saves most, after Shoham and Gersho, “Efficient bit allocation for an arbitrary set
//! of quantizers” (1988).
//!
//! Weights are paid for by the parameter: their budget is an average over parameters, or bytes. Activations are
//! paid for by the decision: an average over layers and timesteps. With a budget of bit operations they are paid
//! for by the parameter and the bits of its weight, for that many operations each of their bits takes.

mod allocate;
mod predict;
mod settings;

use taq_policy::{
    LayerPlan, LayerSpec, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, export_policy, guest,
};

use allocate::{Item, allocate};
use predict::Price;
pub use settings::Settings;

/// What the policy says of itself.
pub fn info() -> PolicyInfo {
    PolicyInfo::new(
        "budget",
        env!("CARGO_PKG_VERSION"),
        "The smallest predicted error for a given average of bits, weight bytes or bit operations.",
    )
    .with_settings_schema(include_str!("../settings.schema.json"))
}

/// The plan.
///
/// # Errors
/// Settings that are unknown, out of range or cannot be met, or neither sensitivities nor statistics.
pub fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
    let settings: Settings = guest::settings(request)?;
    settings.check().map_err(guest::refused_settings)?;
    let weights = weight_bits(&settings, request)?;
    let activations = match settings.bit_ops {
        Some(share) => within_bit_ops(share, &settings, request, &weights)?,
        None => activation_bits(&settings, request)?,
    };

    let steps = request.timesteps.len();
    let layers = request.layers.iter().enumerate().map(|(at, layer)| LayerPlan {
        weight_bits: weights[at],
        activation_bits: activations[at * steps..(at + 1) * steps].to_vec(),
        shift: layer.post_gelu && settings.shift_post_gelu,
        ..LayerPlan::uniform(layer.id.clone(), 0, 0, 0)
    });
    Ok(PolicyPlan::new(layers.collect()))
}

fn weight_bits(settings: &Settings, request: &PolicyRequest) -> Result<Vec<u8>, PolicyError> {
    let widths = settings.weight_widths(request)?;
    let parameters = |layer: &LayerSpec| layer.parameters() as u64;
    let total: u64 = request.layers.iter().map(parameters).sum();
    let items: Vec<Item> = predict::weights(request, &widths)?
        .into_iter()
        .zip(&request.layers)
        .map(|(choices, layer)| Item { cost: parameters(layer), choices })
        .collect();
    let (name, capacity) = match settings.weight_bytes {
        Some(bytes) => ("weight_bytes", bytes.saturating_mul(8)),
        None => ("average_weight_bits", capacity(settings.average_weight_bits, total)),
    };
    allocate(&items, capacity).map_err(|needed| match settings.weight_bytes {
        Some(bytes) => unmet(name, bytes as f64, needed.div_ceil(8) as f64),
        None => unmet(name, settings.average_weight_bits, needed as f64 / total as f64),
    })
}

/// One entry per layer and timestep.
fn activation_bits(settings: &Settings, request: &PolicyRequest) -> Result<Vec<u8>, PolicyError> {
    let widths = settings.activation_widths(request)?;
    let errors = predict::activations(request, &widths, settings.shift_post_gelu, Price::Decision)?;
    let items: Vec<Item> = errors.into_iter().map(|choices| Item { cost: 1, choices }).collect();
    let total = items.len() as u64;
    allocate(&items, capacity(settings.average_activation_bits, total)).map_err(|needed| {
        let least = needed as f64 / total as f64;
        unmet("average_activation_bits", settings.average_activation_bits, least)
    })
}

/// The same within a share of the bit operations of W8A8, for weights of these bits.
fn within_bit_ops(
    share: f64,
    settings: &Settings,
    request: &PolicyRequest,
    weights: &[u8],
) -> Result<Vec<u8>, PolicyError> {
    let widths = settings.activation_widths(request)?;
    let errors = predict::activations(request, &widths, settings.shift_post_gelu, Price::Parameter)?;
    let steps = request.timesteps.len();
    let cost = |at: usize| request.layers[at].parameters() as u64 * u64::from(weights[at]);
    let items: Vec<Item> =
        errors.into_iter().enumerate().map(|(i, choices)| Item { cost: cost(i / steps), choices }).collect();
    let full = request.layers.iter().map(|l| l.parameters() as u64 * 64).sum::<u64>() * steps as u64;
    allocate(&items, capacity(share, full))
        .map_err(|needed| unmet("bit_ops", share, needed as f64 / full as f64))
}

/// Bits that `total` values may have together: the most whose average is not above `average`.
fn capacity(average: f64, total: u64) -> u64 {
    let bits = (average * total as f64) as u64;
    // The product may have been rounded up past a whole number.
    if bits as f64 > average * total as f64 || bits as f64 / total.max(1) as f64 > average {
        bits.saturating_sub(1)
    } else {
        bits
    }
}

fn unmet(name: &str, asked: f64, least: f64) -> PolicyError {
    PolicyError::new(format!("{name}: {asked} cannot be met, the narrowest widths need {least}"))
}

export_policy!(info, assign);

#[cfg(test)]
mod tests;
