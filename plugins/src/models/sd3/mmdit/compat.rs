//! Which implementation's numbers to reproduce.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Deviations from Stable Diffusion 3 as published, for comparisons with software that has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compat {
    /// None: the numbers of diffusers.
    #[default]
    None,
    /// DiffusionKit (argmaxinc/DiffusionKit@498e5db): key projections without bias, GELU by the error function
    /// instead of its tanh approximation, timestep embedding in half precision.
    Diffusionkit,
}

impl Compat {
    /// Whether key projections keep their bias. DiffusionKit drops it as redundant under softmax, which is true
    /// of one stream, not of two streams with a bias each.
    pub(super) fn key_bias(self) -> bool {
        self == Self::None
    }

    /// Whether the MLP's GELU is the tanh approximation that the weights were trained with.
    pub(super) fn gelu_tanh(self) -> bool {
        self == Self::None
    }

    /// Whether timesteps and their sinusoids are rounded to half precision.
    pub(super) fn half_timesteps(self) -> bool {
        self == Self::Diffusionkit
    }
}
