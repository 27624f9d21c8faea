//! What the transformer computes in.

use mlx_rs::Dtype;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Element type of the transformer: of its weights and of what it computes with them. Text encoders and VAE stay in
/// `float32`: they run once an image, and the VAE's activations exceed what `float16` can hold.
///
/// Layer norms and attention add up in `float32` whatever the type; sinusoids of timesteps are computed in `float32` and
/// rounded to it, as in diffusers. The velocity leaves the transformer in this type, guidance and sampler work in `float32`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Precision {
    /// Single precision: what calibrating, observing and rounding need.
    #[default]
    Float32,
    /// Half precision, for generating images on a GPU.
    Float16,
    /// Half precision with the range of `float32` and three bits less than `float16`, for generating images on a GPU.
    Bfloat16,
}

impl Precision {
    /// MLX's name for it.
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::Float32,
            Self::Float16 => Dtype::Float16,
            Self::Bfloat16 => Dtype::Bfloat16,
        }
    }
}
