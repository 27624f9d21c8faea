//! The tensor functions that the transformer, the text encoders and the VAE are made of.
//!
//! Each is one function so that its implementation can be chosen in one place. All are lazy and differentiable,
//! and take and give f32 unless said otherwise.

use mlx_rs::{Array, fast, ops};
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
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let cubic = x.square()?.multiply(scalar(0.044_715))?.add(scalar(1.0))?.multiply(x)?;
    let t = ops::tanh(cubic.multiply(scalar(SQRT_2_OVER_PI))?)?;
    Ok(t.add(scalar(1.0))?.multiply(x)?.multiply(scalar(0.5))?)
}

/// GELU: `x/2 · (1 + erf(x/√2))`.
pub(crate) fn gelu_erf(x: &Array) -> Result<Array> {
    let e = ops::erf(x.multiply(scalar(std::f32::consts::FRAC_1_SQRT_2))?)?;
    Ok(e.add(scalar(1.0))?.multiply(x)?.multiply(scalar(0.5))?)
}

/// OpenAI's approximation of GELU in CLIP-L: `x · sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(x: &Array) -> Result<Array> {
    Ok(ops::sigmoid(x.multiply(scalar(1.702))?)?.multiply(x)?)
}

/// `x · sigmoid(x)`.
pub(crate) fn silu(x: &Array) -> Result<Array> {
    Ok(ops::sigmoid(x)?.multiply(x)?)
}

/// Layer normalization over the last axis, with an optional weight and bias of its size.
pub(crate) fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f32) -> Result<Array> {
    Ok(fast::layer_norm(x, weight, bias, eps)?)
}

/// `LN(x) · (1 + scale) + shift` without affine parameters: `x` is `[batch, tokens, width]`, `shift` and
/// `scale` are `[batch, width]`.
pub(crate) fn layer_norm_modulate(x: &Array, shift: &Array, scale: &Array, eps: f32) -> Result<Array> {
    let scale = scale.add(scalar(1.0))?.expand_dims(1)?;
    Ok(layer_norm(x, None, None, eps)?.multiply(scale)?.add(shift.expand_dims(1)?)?)
}

/// Root-mean-square normalization over the last axis, with a weight of its size.
pub(crate) fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    Ok(fast::rms_norm(x, Some(weight), eps)?)
}

/// Softmax attention of `heads` heads, scaled by `1/√head_dim`: `q` is `[batch, tokens, heads · head_dim]`,
/// `k` and `v` are `[batch, keys, heads · head_dim]`; `mask`, added to the scores, broadcasts to
/// `[batch, heads, tokens, keys]`. Gives `[batch, tokens, heads · head_dim]`.
pub(crate) fn attention(q: &Array, k: &Array, v: &Array, heads: i32, mask: Option<&Array>) -> Result<Array> {
    attention_scaled(q, k, v, heads, ((q.dim(-1) / heads) as f32).powf(-0.5), mask)
}

/// [`attention`] with another scale (T5's is 1).
pub(crate) fn attention_scaled(
    q: &Array,
    k: &Array,
    v: &Array,
    heads: i32,
    scale: f32,
    mask: Option<&Array>,
) -> Result<Array> {
    let split = |x: &Array| -> Result<Array> {
        let x = x.reshape(&[x.dim(0), x.dim(1), heads, x.dim(2) / heads])?;
        Ok(x.transpose_axes(&[0, 2, 1, 3])?)
    };
    let mask = mask.map(fast::ScaledDotProductAttentionMask::Array);
    let out = fast::scaled_dot_product_attention(split(q)?, split(k)?, split(v)?, scale, mask, None)?;
    Ok(out.transpose_axes(&[0, 2, 1, 3])?.reshape(q.shape())?)
}

/// `x + gate · y`: `x` and `y` are `[batch, tokens, width]`, `gate` is `[batch, width]`.
pub(crate) fn gated_add(x: &Array, gate: &Array, y: &Array) -> Result<Array> {
    Ok(x.add(y.multiply(gate.expand_dims(1)?)?)?)
}

fn scalar(x: f32) -> Array {
    Array::from_f32(x)
}
