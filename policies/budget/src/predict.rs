//! Predicted errors, by width.
//!
//! *From sensitivities*, where the request has them: they are measured, and added over layers. Widths that
//! nobody measured are not used. An activation's sensitivity is of all timesteps; it is shared out over them
//! as the statistics below say, or without them by (Δσ)² alone.
//!
//! *From statistics* otherwise. A grid of b bits over the range ±A has steps of Δ = A/q, where q is 2^(b-1) -
//! 1, and rounding to it adds noise of power Δ²/12. A linear layer hands noise on like signal, so what counts
//! is their ratio. The magnitude of the signal is taken to be the 99 % quantile P of the inputs' magnitudes,
//! which a few outliers do not move. Up to a constant that all layers share:
//!
//! - *Activations*: (Δσ)²·(A/P)²/q². A is the largest magnitude (of a shifted layer: what is left after the
//!   shift). Every layer counts alike; where bits are paid for by the parameter, as its parameters, for the reason
//!   below. Timesteps count by how far the noise level falls there: a sampler
//!   moves the latent by Δσ times the model's output, so that is how much of an error arrives in the image.
//! - *Weights*: the request says nothing of a weight's own distribution, so 1/q² is the same for all. But
//!   rounding spreads noise evenly over the input channels, and noise in the columns of outlier channels is
//!   multiplied by the outliers, while the weights there have learned to be small: the noise grows by 1 +
//!   f·(A/σ)² over the signal, for a share f of the channels with spikes and σ = P/2.576, as of a normal
//!   distribution. The mean over timesteps, which count as above, times the parameters: bits are paid by the
//!   parameter, and of two layers with the same statistics neither should be favoured for its size.

use std::collections::BTreeMap;

use taq_policy::{LayerColumns, LayerId, LayerSpec, PolicyError, PolicyRequest, Timestep};

/// The 99 % quantile of the magnitudes of a normal distribution, in standard deviations.
const P99_IN_SIGMA: f64 = 2.576;

/// What an activation's bits are paid for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Price {
    /// Every layer and timestep costs the same.
    Decision,
    /// A layer costs as many times more as it has more parameters.
    Parameter,
}

/// Widths, rising, each with its predicted error.
type Choices = Vec<(u8, f64)>;

/// One entry per layer.
pub(crate) fn weights(request: &PolicyRequest, widths: &[u8]) -> Result<Vec<Choices>, PolicyError> {
    if let Some(measured) = sensitivities(request, true, widths)? {
        return Ok(measured);
    }
    let fall = squared_fall(&request.timesteps);
    let weight = |(layer, columns): (&LayerSpec, &LayerColumns)| {
        let importance = importance(columns, &fall) * layer.parameters() as f64;
        finite(&layer.id, importance).map(|importance| by_width(importance, widths))
    };
    request.measured()?.into_iter().map(weight).collect()
}

/// One entry per layer and timestep, the timesteps of a layer one after the other.
pub(crate) fn activations(
    request: &PolicyRequest,
    widths: &[u8],
    shift: bool,
    price: Price,
) -> Result<Vec<Choices>, PolicyError> {
    let fall = squared_fall(&request.timesteps);
    let power = |(layer, columns): (&LayerSpec, &LayerColumns)| {
        let shifted = shift && layer.post_gelu && !columns.shifted_absmax.is_empty();
        let size = if price == Price::Parameter { layer.parameters() as f64 } else { 1.0 };
        let reach = if shifted { &columns.shifted_absmax } else { &columns.absmax };
        let ratios = reach.iter().zip(&columns.p99).map(|(&reach, &p99)| squared_ratio(reach, p99));
        ratios
            .zip(&fall)
            .map(|(ratio, fall)| finite(&layer.id, ratio * fall * size))
            .collect::<Result<Vec<f64>, _>>()
    };
    let measured = sensitivities(request, false, widths)?;
    let power: Vec<Vec<f64>> = if measured.is_some() && request.statistics.is_empty() {
        vec![fall; request.layers.len()]
    } else {
        request.measured()?.into_iter().map(power).collect::<Result<_, _>>()?
    };
    Ok(match measured {
        None => power.iter().flatten().map(|&power| by_width(power, widths)).collect(),
        Some(measured) => {
            measured.iter().zip(&power).flat_map(|(choices, power)| share(choices, power)).collect()
        }
    })
}

/// The error of noise that falls as the square of the grid's levels.
fn by_width(power: f64, widths: &[u8]) -> Choices {
    let error = |bits: u8| {
        let qmax = f64::from((1u16 << (bits - 1)) - 1);
        power / (qmax * qmax)
    };
    widths.iter().map(|&bits| (bits, error(bits))).collect()
}

/// A layer's error, shared out over its timesteps in proportion to `power`.
fn share<'a>(choices: &'a Choices, power: &'a [f64]) -> impl Iterator<Item = Choices> + 'a {
    let total: f64 = power.iter().sum();
    let equal = 1.0 / power.len() as f64;
    power.iter().map(move |power| {
        let share = if total > 0.0 { power / total } else { equal };
        choices.iter().map(|&(bits, error)| (bits, error * share)).collect()
    })
}

/// How much an error in a weight matters, beyond its own size.
fn importance(columns: &LayerColumns, fall: &[f64]) -> f64 {
    let spikes = columns.absmax.iter().zip(&columns.p99).zip(&columns.spike_fraction).zip(fall);
    let noise: f64 = spikes
        .map(|(((&absmax, &p99), &fraction), fall)| {
            let outliers = f64::from(fraction) * squared_ratio(absmax, p99) * (P99_IN_SIGMA * P99_IN_SIGMA);
            fall * (1.0 + outliers)
        })
        .sum();
    // Of no timesteps there is nothing to say.
    if fall.is_empty() { 1.0 } else { noise / fall.iter().sum::<f64>() }
}

/// (Δσ)² of every timestep, the last one's down to 0. All alike if the noise level never falls.
fn squared_fall(timesteps: &[Timestep]) -> Vec<f64> {
    let next = timesteps.iter().skip(1).map(|t| f64::from(t.sigma)).chain([0.0]);
    let fall: Vec<f64> = timesteps.iter().zip(next).map(|(t, next)| f64::from(t.sigma) - next).collect();
    if fall.iter().all(|&fall| fall == 0.0) {
        return vec![1.0; fall.len()];
    }
    fall.iter().map(|fall| fall * fall).collect()
}

/// (A/P)², 1 for a layer that saw next to nothing but zeros.
fn squared_ratio(reach: f32, p99: f32) -> f64 {
    if p99 == 0.0 {
        return 1.0;
    }
    let ratio = f64::from(reach) / f64::from(p99);
    ratio * ratio
}

fn finite(layer: &LayerId, value: f64) -> Result<f64, PolicyError> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(PolicyError::new(format!("the statistics of {layer} are not finite")))
}

/// The measured errors of every layer at those of the widths that were measured, or `None` if nothing was.
fn sensitivities(
    request: &PolicyRequest,
    weight: bool,
    widths: &[u8],
) -> Result<Option<Vec<Choices>>, PolicyError> {
    let mut found: BTreeMap<&LayerId, BTreeMap<u8, f64>> = BTreeMap::new();
    let kind = if weight { "weight" } else { "input" };
    for s in request.sensitivities.iter().filter(|s| s.weight == weight) {
        let what = || format!("sensitivities: the {kind} of {} at {} bits", s.id, s.bits);
        if !(s.error.is_finite() && s.error >= 0.0) {
            return Err(PolicyError::new(format!("{} has the error {}", what(), s.error)));
        }
        if found.entry(&s.id).or_default().insert(s.bits, f64::from(s.error)).is_some() {
            return Err(PolicyError::new(format!("{} appears twice", what())));
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let choices = |layer: &LayerSpec| -> Result<Choices, PolicyError> {
        let errors = found.get(&layer.id);
        let at = |&bits: &u8| errors.and_then(|errors| errors.get(&bits)).map(|&error| (bits, error));
        let choices: Choices = widths.iter().filter_map(at).collect();
        if choices.is_empty() {
            return Err(PolicyError::new(format!(
                "sensitivities: the {kind} of {} was not measured at any of {widths:?} bits",
                layer.id
            )));
        }
        Ok(choices)
    };
    request.layers.iter().map(choices).collect::<Result<_, _>>().map(Some)
}
