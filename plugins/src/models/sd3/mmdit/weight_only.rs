//! Linear layers of which a quantized model replaces the weight alone: modulation and embeddings.

use mlx_rs::Array;
use taq_core::{LayerId, Result, Tap, WeightOnlyCall, WeightOnlySpec};

use crate::models::sd3::weights::Loader;

/// A linear layer whose input is never quantized.
#[derive(Debug)]
pub(super) struct WeightOnlyLinear {
    pub(super) spec: WeightOnlySpec,
    /// diffusers' name of the module.
    pub(super) module: String,
    /// `[out_features, in_features]`.
    pub(super) weight: Array,
    bias: Option<Array>,
}

impl WeightOnlyLinear {
    /// The layer `id` from the tensors of the loader's module; its shape is `[out_features, in_features]`.
    pub(super) fn load(loader: &Loader<'_>, id: String, shape: [usize; 2]) -> Self {
        let [out_features, in_features] = shape;
        Self {
            spec: WeightOnlySpec { id: LayerId::new(id), in_features, out_features },
            module: loader.module().to_owned(),
            weight: loader.deferred("weight", &shape),
            bias: Some(loader.tensor("bias", &[out_features])),
        }
    }

    /// `x` is `[…, in_features]`.
    pub(super) fn forward(&self, x: &Array, tap: &mut dyn Tap) -> Result<Array> {
        let bias = self.bias.as_ref();
        tap.weight_only(WeightOnlyCall { layer: &self.spec, input: x, weight: &self.weight, bias })
    }
}
