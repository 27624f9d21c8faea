use serde::{Deserialize, Serialize};
use taq_policy::{PolicyError, PolicyRequest};

/// How much an error at a timestep counts, by how far the noise level σ falls there. A sampler moves the latent by Δσ times
/// the model's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// (Δσ)²: errors of different timesteps are independent, so their powers add.
    #[default]
    SquaredFall,
    /// Δσ, between the two.
    Fall,
    /// All alike.
    Uniform,
}

/// Settings of `timestep-mixed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bits of an input, on average over all layers and timesteps: an upper limit.
    pub average_activation_bits: f64,
    /// Fewest bits of an input, 2 to 8.
    pub min_activation_bits: u8,
    /// Most bits of an input, 2 to 8.
    pub max_activation_bits: u8,
    /// Bits of every weight, 2 to 8.
    pub weight_bits: u8,
    /// Most runs of one width along the schedule of a layer.
    pub runs: usize,
    /// Whether a layer may clip at a quantile where less error is predicted.
    pub clip: bool,
    /// How much an error at a timestep counts.
    pub weighting: Weighting,
    /// Whether measured sensitivities say how much a layer matters, where there are any.
    pub use_sensitivities: bool,
    /// Whether post-GELU inputs are shifted per channel before they are quantized.
    pub shift_post_gelu: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            average_activation_bits: 6.0,
            min_activation_bits: 4,
            max_activation_bits: 8,
            weight_bits: 8,
            runs: 4,
            clip: false,
            weighting: Weighting::default(),
            use_sensitivities: true,
            shift_post_gelu: true,
        }
    }
}

impl Settings {
    /// Whether the settings make sense, whatever the request.
    ///
    /// # Errors
    /// The first field that does not, and what was expected.
    pub fn check(&self) -> Result<(), PolicyError> {
        let refuse = |reason: String| Err(PolicyError::new(reason));
        for (name, bits) in [
            ("min_activation_bits", self.min_activation_bits),
            ("max_activation_bits", self.max_activation_bits),
            ("weight_bits", self.weight_bits),
        ] {
            if !(2..=8).contains(&bits) {
                return refuse(format!("{name} must be 2 to 8, not {bits}"));
            }
        }
        let (min, max, average) =
            (self.min_activation_bits, self.max_activation_bits, self.average_activation_bits);
        if min > max {
            return refuse(format!(
                "min_activation_bits must not be above max_activation_bits: {min} and {max}"
            ));
        }
        if !(average.is_finite() && average >= f64::from(min)) {
            return refuse(format!(
                "average_activation_bits must be at least min_activation_bits, which is {min}, not {average}"
            ));
        }
        if !(1..=1000).contains(&self.runs) {
            return refuse(format!("runs must be 1 to 1000, not {}", self.runs));
        }
        Ok(())
    }

    /// The widths that inputs may have, rising.
    pub(crate) fn widths(&self, request: &PolicyRequest) -> Result<Vec<u8>, PolicyError> {
        let (min, max) = (self.min_activation_bits, self.max_activation_bits);
        let allowed = &request.activation_bits;
        let widths: Vec<u8> = (min..=max).filter(|bits| allowed.contains(bits)).collect();
        if widths.is_empty() {
            return Err(PolicyError::new(format!(
                "min_activation_bits and max_activation_bits: none of {min} to {max} is allowed, only {allowed:?}"
            )));
        }
        Ok(widths)
    }
}
