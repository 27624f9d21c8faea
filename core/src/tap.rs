//! How a forward pass is watched or changed.
//!
//! Every quantizable linear layer's call goes through the tap that was passed to the forward pass. A tap may
//! watch (observers, caches), replace the input or the weight (fake quantization), or do the multiplication
//! itself (integer kernels). There is no other mechanism: no hooks, no patching, no hidden state.

use mlx_rs::Array;

use crate::{LayerSpec, Result, WeightOnlySpec};

/// One call of a linear layer: `y = x Wᵀ + b`. `L` says which: a [`LayerSpec`], whose input may be quantized, or a
/// [`WeightOnlySpec`].
pub struct LinearCall<'a, L = LayerSpec> {
    /// Which layer.
    pub layer: &'a L,
    /// `[batch, tokens, in_features]`; of a [`WeightOnlyCall`] `[…, in_features]`.
    pub input: &'a Array,
    /// `[out_features, in_features]`.
    pub weight: &'a Array,
    /// `[out_features]`.
    pub bias: Option<&'a Array>,
}

/// One call of a linear layer whose input is not quantized.
pub type WeightOnlyCall<'a> = LinearCall<'a, WeightOnlySpec>;

impl<L> LinearCall<'_, L> {
    /// The full-precision product, `[…, out_features]`.
    pub fn compute(&self) -> Result<Array> {
        self.compute_with(self.input, self.weight)
    }

    /// The product of another input or weight of the same shapes, with the layer's own bias.
    pub fn compute_with(&self, input: &Array, weight: &Array) -> Result<Array> {
        Ok(mlx_host::linear(input, weight, self.bias)?)
    }
}

/// Watches or changes a forward pass.
///
/// ```
/// use taq_core::{LinearCall, Result, Tap, mlx_rs::Array};
///
/// /// Counts calls and changes nothing.
/// #[derive(Default)]
/// struct Count(usize);
///
/// impl Tap for Count {
///     fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
///         self.0 += 1;
///         call.compute()
///     }
/// }
/// ```
pub trait Tap {
    /// Called once at the start of a forward pass (of the model or of one block), with the timestep (1000 σ)
    /// of every row of the batch.
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        let _ = timesteps;
        Ok(())
    }

    /// Called for every quantizable linear layer; returns its output, `[batch, tokens, out_features]`.
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array>;

    /// Called for every layer of [`ModelSpec::weight_only`](crate::ModelSpec::weight_only); returns its output,
    /// `[…, out_features]`.
    fn weight_only(&mut self, call: WeightOnlyCall<'_>) -> Result<Array> {
        call.compute()
    }
}

/// The tap that changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Identity;

impl Tap for Identity {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        call.compute()
    }
}
