//! The tensor functions that the transformer, the text encoders and the VAE are made of.
//!
//! Each is one function so that its implementation can be chosen in one place: `mlx_host`'s kernels, which on other
//! devices than the CPU are compositions of MLX's operations. All are lazy and differentiable.

use mlx_rs::{Array, ops};
use taq_core::Result;

/// A linear layer's parameters, for layers that no tap sees.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// `[out_features, in_features]`.
    pub(crate) weight: Array,
    /// `[out_features]`.
    pub(crate) bias: Option<Array>,
}

impl Linear {
    /// `x Wᵀ + b` over the last axis of `x`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// `x Wᵀ + b`: `x` is `[…, in_features]`, `weight` `[out_features, in_features]`, `bias` `[out_features]`.
pub(crate) fn linear(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    Ok(mlx_host::linear(x, weight, bias)?)
}

/// GELU by its tanh approximation: `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub(crate) fn gelu_tanh(x: &Array) -> Result<Array> {
    Ok(mlx_host::gelu_tanh(x)?)
}

/// GELU: `x/2 · (1 + erf(x/√2))`.
pub(crate) fn gelu_erf(x: &Array) -> Result<Array> {
    Ok(mlx_host::gelu_erf(x)?)
}

/// OpenAI's approximation of GELU in CLIP-L: `x · sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(x: &Array) -> Result<Array> {
    Ok(mlx_host::quick_gelu(x)?)
}

/// `x · sigmoid(x)`.
pub(crate) fn silu(x: &Array) -> Result<Array> {
    Ok(mlx_host::silu(x)?)
}

/// Layer normalization over the last axis, with an optional weight and bias of its size.
pub(crate) fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    Ok(mlx_host::layer_norm(x, weight, bias, eps)?)
}

/// `LN(x) · (1 + scale) + shift` without affine parameters: `x` is `[batch, tokens, width]`, `shift` and
/// `scale` are `[batch, width]`.
pub(crate) fn layer_norm_modulate(x: &Array, shift: &Array, scale: &Array, eps: f32) -> Result<Array> {
    Ok(mlx_host::layer_norm_modulate(x, scale, shift, eps)?)
}

/// Root-mean-square normalization over the last axis, with a weight of its size.
pub(crate) fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    Ok(mlx_host::rms_norm(x, weight, eps)?)
}

/// Softmax attention of `heads` heads, scaled by `1/√head_dim`: `q` is `[batch, tokens, heads · head_dim]`,
/// `k` and `v` are `[batch, keys, heads · head_dim]`; `bias`, added to the scores, broadcasts to
/// `[1, heads, tokens, keys]`. Gives `[batch, tokens, heads · head_dim]`.
pub(crate) fn attention(q: &Array, k: &Array, v: &Array, heads: i32, bias: Option<&Array>) -> Result<Array> {
    attention_scaled(q, k, v, heads, ((q.dim(-1) / heads) as f32).powf(-0.5), bias)
}

/// [`attention`] with another scale (T5's is 1).
pub(crate) fn attention_scaled(
    q: &Array,
    k: &Array,
    v: &Array,
    heads: i32,
    scale: f32,
    bias: Option<&Array>,
) -> Result<Array> {
    let (n, m) = (q.dim(1), k.dim(1));
    let bias = bias.map(|b| ops::broadcast_to(b, &[1, heads, n, m])?.reshape(&[heads, n, m])).transpose()?;
    let mask = bias.as_ref().map_or(mlx_host::Mask::None, mlx_host::Mask::Bias);
    Ok(mlx_host::attention(q, k, v, heads as usize, scale, mask)?)
}

/// `x + gate · y`: `x` and `y` are `[batch, tokens, width]`, `gate` is `[batch, width]`.
pub(crate) fn gated_add(x: &Array, gate: &Array, y: &Array) -> Result<Array> {
    Ok(mlx_host::gated_add(x, gate, y)?)
}
