use serde::{Deserialize, Serialize};
use taq_policy::{PolicyError, ScaleSource};

/// Settings of `multitier`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bits of every weight, 2 to 8.
    pub bits_w: u8,
    /// Activation bits of the three tiers, narrowest first.
    pub tiers: [u8; 3],
    /// Clipping magnitudes below this get the first tier.
    pub a4_threshold: f32,
    /// Clipping magnitudes from `a4_threshold` to below this get the second tier; all others the third.
    pub a6_threshold: f32,
    /// `a4_threshold` of shifted layers, for what is left after the shift.
    pub shifted_a4_threshold: f32,
    /// `a6_threshold` of shifted layers, for what is left after the shift.
    pub shifted_a6_threshold: f32,
    /// The guard: where p99/p50 over the channels' largest magnitudes is above this, the layer goes one tier up
    /// at that timestep, unless it is post-GELU. Channels that are all alike have 1.
    pub outlier_ratio: f32,
    /// The statistic that becomes the clipping range of activations, and that the thresholds are for. Shifted
    /// layers always take the largest magnitude.
    pub scale_source: ScaleSource,
    /// Whether post-GELU inputs are shifted per channel before they are quantized.
    pub shift_post_gelu: bool,
    /// Whether layers with few, far outlying channels are smoothed and go one tier down. Off by default: this
    /// version of taq cannot execute SmoothQuant, and refuses a plan that asks for it.
    pub smoothquant: bool,
    /// SmoothQuant's migration strength: 0 leaves the activations as they are, 1 moves all outliers to the
    /// weights.
    pub smoothquant_alpha: f32,
    /// SmoothQuant is for layers where less than this share of the channels has a range over 5 times the median
    /// channel's.
    pub smoothquant_fraction: f32,
    /// SmoothQuant is for layers where the largest channel's magnitude is more than this many times the 99 %
    /// quantile over channels.
    pub smoothquant_spike: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bits_w: 4,
            tiers: [4, 6, 8],
            a4_threshold: 6.0,
            a6_threshold: 10.0,
            shifted_a4_threshold: 5.0,
            shifted_a6_threshold: 8.0,
            outlier_ratio: 4.0,
            scale_source: ScaleSource::Absmax,
            shift_post_gelu: true,
            smoothquant: false,
            smoothquant_alpha: 0.5,
            smoothquant_fraction: 0.05,
            smoothquant_spike: 5.0,
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
        if !(2..=8).contains(&self.bits_w) {
            return refuse(format!("bits_w must be 2 to 8, not {}", self.bits_w));
        }
        let [low, mid, high] = self.tiers;
        if !(2 <= low && low <= mid && mid <= high && high <= 8) {
            return refuse(format!("tiers must be 2 to 8 and rising, not {:?}", self.tiers));
        }
        for (name, value) in [
            ("a4_threshold", self.a4_threshold),
            ("a6_threshold", self.a6_threshold),
            ("shifted_a4_threshold", self.shifted_a4_threshold),
            ("shifted_a6_threshold", self.shifted_a6_threshold),
            ("outlier_ratio", self.outlier_ratio),
            ("smoothquant_fraction", self.smoothquant_fraction),
            ("smoothquant_spike", self.smoothquant_spike),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(format!("{name} must be a number from 0, not {value}"));
            }
        }
        for (prefix, low, high) in [
            ("", self.a4_threshold, self.a6_threshold),
            ("shifted_", self.shifted_a4_threshold, self.shifted_a6_threshold),
        ] {
            if low > high {
                return refuse(format!(
                    "{prefix}a4_threshold must not be above {prefix}a6_threshold: {low} and {high}"
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.smoothquant_alpha) {
            return refuse(format!("smoothquant_alpha must be 0 to 1, not {}", self.smoothquant_alpha));
        }
        Ok(())
    }
}
