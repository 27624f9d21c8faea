use serde::{Deserialize, Serialize};
use taq_policy::{PolicyError, PolicyRequest};

/// Settings of `budget`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bits of a weight, on average over all parameters: an upper limit.
    pub average_weight_bits: f64,
    /// Bytes that all quantized weights may take together, without their scales; replaces
    /// `average_weight_bits`.
    pub weight_bytes: Option<u64>,
    /// Bits of an activation, on average over all layers and timesteps: an upper limit.
    pub average_activation_bits: f64,
    /// Bit operations, as a share of those with eight bits everywhere: an upper limit. Counted for each token that
    /// passes all layers at all timesteps: the sum of inputs × outputs × weight bits × activation bits. W4A8 has
    /// 0.5, W4A6 0.375. The weights' bits are chosen first; this replaces `average_activation_bits`.
    pub bit_ops: Option<f64>,
    /// Fewest bits of a weight, 2 to 8. Below 3 the error is too large to be predicted by a sum over layers.
    pub min_weight_bits: u8,
    /// Most bits of a weight, 2 to 8.
    pub max_weight_bits: u8,
    /// Fewest bits of an activation, 2 to 8. Below 4 the error is too large to be predicted by a sum over
    /// layers.
    pub min_activation_bits: u8,
    /// Most bits of an activation, 2 to 8.
    pub max_activation_bits: u8,
    /// Whether post-GELU inputs are shifted per channel before they are quantized.
    pub shift_post_gelu: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            average_weight_bits: 4.5,
            weight_bytes: None,
            average_activation_bits: 8.0,
            bit_ops: None,
            min_weight_bits: 3,
            max_weight_bits: 8,
            min_activation_bits: 4,
            max_activation_bits: 8,
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
            ("min_weight_bits", self.min_weight_bits),
            ("max_weight_bits", self.max_weight_bits),
            ("min_activation_bits", self.min_activation_bits),
            ("max_activation_bits", self.max_activation_bits),
        ] {
            if !(2..=8).contains(&bits) {
                return refuse(format!("{name} must be 2 to 8, not {bits}"));
            }
        }
        for (kind, min, max, average) in [
            ("weight", self.min_weight_bits, self.max_weight_bits, self.average_weight_bits),
            ("activation", self.min_activation_bits, self.max_activation_bits, self.average_activation_bits),
        ] {
            if min > max {
                return refuse(format!("min_{kind}_bits must not be above max_{kind}_bits: {min} and {max}"));
            }
            let limited = match kind {
                "weight" => self.weight_bytes.is_none(),
                _ => self.bit_ops.is_none(),
            };
            if limited && !(average.is_finite() && average >= f64::from(min)) {
                return refuse(format!(
                    "average_{kind}_bits must be at least min_{kind}_bits, which is {min}, not {average}"
                ));
            }
        }
        match self.bit_ops {
            Some(share) if !(share.is_finite() && share > 0.0) => {
                refuse(format!("bit_ops must be a share above 0, not {share}"))
            }
            _ => Ok(()),
        }
    }

    /// The widths that weights may have, rising.
    pub(crate) fn weight_widths(&self, request: &PolicyRequest) -> Result<Vec<u8>, PolicyError> {
        widths("weight", &request.weight_bits, self.min_weight_bits, self.max_weight_bits)
    }

    /// The widths that activations may have, rising.
    pub(crate) fn activation_widths(&self, request: &PolicyRequest) -> Result<Vec<u8>, PolicyError> {
        widths("activation", &request.activation_bits, self.min_activation_bits, self.max_activation_bits)
    }
}

fn widths(kind: &str, allowed: &[u8], min: u8, max: u8) -> Result<Vec<u8>, PolicyError> {
    let widths: Vec<u8> = (min..=max).filter(|bits| allowed.contains(bits)).collect();
    if widths.is_empty() {
        return Err(PolicyError::new(format!(
            "min_{kind}_bits and max_{kind}_bits: none of {min} to {max} is allowed, only {allowed:?}"
        )));
    }
    Ok(widths)
}
