//! The price of a bit at which all layers together keep the average.
//!
//! A higher price buys fewer bits (Shoham and Gersho, 1988): bisection finds a price that keeps the average and one just
//! below it that does not. Between both plans layers change over one by one, those first whose error falls most for each
//! bit, until no other fits.

use taq_policy::PolicyError;

use crate::noise::LayerErrors;
use crate::runs::cheapest;

/// Halvings of the price's logarithm: to one part in ten thousand of a price between 1e-24 and 1e6.
const HALVINGS: usize = 20;

/// What one layer gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chosen {
    /// Which of the layer's sources.
    pub(crate) source: usize,
    /// Position of the width at each timestep.
    pub(crate) widths: Vec<usize>,
    error: f64,
    bits: u64,
}

/// One entry per layer, together within an average of bits over layers and timesteps.
pub(crate) fn within(
    layers: &[LayerErrors],
    bits: &[u8],
    runs: usize,
    average: f64,
) -> Result<Vec<Chosen>, PolicyError> {
    let steps = layers.first().map_or(0, |layer| layer.sources[0].1.len());
    let total = (layers.len() * steps) as f64;
    let limit = (average * total + 1e-9) as u64;
    let at =
        |price: f64| -> Vec<Chosen> { layers.iter().map(|layer| choose(layer, bits, runs, price)).collect() };
    let spent = |plans: &[Chosen]| plans.iter().map(|plan| plan.bits).sum::<u64>();

    let (mut low, mut high) = (1e-24_f64.ln(), 1e6_f64.ln());
    let generous = at(low.exp());
    if spent(&generous) <= limit {
        return Ok(generous);
    }
    let least = u64::from(bits[0]) * layers.len() as u64 * steps as u64;
    if least > limit {
        let needed = least as f64 / total;
        return Err(PolicyError::new(format!(
            "average_activation_bits: {average} cannot be met, the narrowest widths need {needed}"
        )));
    }
    let (mut above, mut kept) = (generous, at(high.exp()));
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        let plans = at(middle.exp());
        if spent(&plans) <= limit {
            (high, kept) = (middle, plans);
        } else {
            (low, above) = (middle, plans);
        }
    }
    let mut left = limit.saturating_sub(spent(&kept));
    let mut order: Vec<usize> = (0..kept.len()).filter(|&i| above[i].bits > kept[i].bits).collect();
    let gain = |i: usize| (kept[i].error - above[i].error) / (above[i].bits - kept[i].bits) as f64;
    order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)).then(a.cmp(&b)));
    for i in order {
        let more = above[i].bits - kept[i].bits;
        if more <= left {
            left -= more;
            kept[i] = above[i].clone();
        }
    }
    Ok(kept)
}

/// The cheapest plan of a layer over its sources; among equals the first, which clips least.
fn choose(layer: &LayerErrors, bits: &[u8], runs: usize, price: f64) -> Chosen {
    let mut best: Option<(f64, Chosen)> = None;
    for (source, (_, errors)) in layer.sources.iter().enumerate() {
        let (widths, cost) = cheapest(errors, bits, runs, price);
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            let error = errors.iter().zip(&widths).map(|(step, &at)| step[at]).sum();
            let bits = widths.iter().map(|&at| u64::from(bits[at])).sum();
            best = Some((cost, Chosen { source, widths, error, bits }));
        }
    }
    best.map_or(Chosen { source: 0, widths: Vec::new(), error: 0.0, bits: 0 }, |(_, chosen)| chosen)
}
