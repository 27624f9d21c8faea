//! Quantizable linear layers, and attention made of them.

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use taq_core::{BlockId, LayerId, LayerSpec, LinearCall, Result, Role, Stream, Tap};

use super::MmditConfig;
use super::config::QkNorm;
use crate::models::sd3::ops;
use crate::models::sd3::weights::Loader;

/// Added to the mean square in the normalization of queries and keys, and to the variance in layer norms.
pub(super) const EPS: f32 = 1e-6;

/// A linear layer whose calls go through the tap.
#[derive(Debug)]
pub(super) struct TappedLinear {
    pub(super) spec: LayerSpec,
    /// diffusers' name of the module.
    pub(super) module: String,
    /// `[out_features, in_features]`.
    pub(super) weight: Array,
    bias: Option<Array>,
}

impl TappedLinear {
    /// `x` is `[batch, tokens, in_features]`.
    pub(super) fn forward(&self, x: &Array, tap: &mut dyn Tap) -> Result<Array> {
        tap.linear(LinearCall { layer: &self.spec, input: x, weight: &self.weight, bias: self.bias.as_ref() })
    }
}

/// Makes the linear layers of one stream of one block.
pub(super) struct LayerMaker<'a, 'w> {
    pub(super) loader: &'a Loader<'w>,
    pub(super) block: &'a BlockId,
    pub(super) stream: Stream,
}

impl LayerMaker<'_, '_> {
    /// The layer `{block}.{img|txt}.{name}` from the tensors at `key`.
    pub(super) fn linear(&self, key: &str, name: &str, role: Role, shape: [usize; 2]) -> TappedLinear {
        let [out_features, in_features] = shape;
        let stream = match self.stream {
            Stream::Image => "img",
            Stream::Text => "txt",
        };
        let loader = self.loader.scope(key);
        TappedLinear {
            spec: LayerSpec {
                id: LayerId::new(format!("{}.{stream}.{name}", self.block)),
                block: self.block.clone(),
                stream: self.stream,
                role,
                in_features,
                out_features,
                post_gelu: role == Role::Fc2,
            },
            module: loader.module().to_owned(),
            weight: loader.deferred("weight", &shape),
            bias: Some(loader.tensor("bias", &[out_features])),
        }
    }
}

/// What diffusers calls the tensors of one stream of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionKeys {
    /// The module within the block.
    module: &'static str,
    /// Its name in layer ids.
    id: &'static str,
    q: &'static str,
    k: &'static str,
    v: &'static str,
    o: &'static str,
    norm_q: &'static str,
    norm_k: &'static str,
}

/// The image stream of the joint attention.
pub(super) const IMAGE: AttentionKeys = AttentionKeys {
    module: "attn",
    id: "attn",
    q: "to_q",
    k: "to_k",
    v: "to_v",
    o: "to_out.0",
    norm_q: "norm_q",
    norm_k: "norm_k",
};

/// The text stream of the joint attention.
pub(super) const TEXT: AttentionKeys = AttentionKeys {
    module: "attn",
    id: "attn",
    q: "add_q_proj",
    k: "add_k_proj",
    v: "add_v_proj",
    o: "to_add_out",
    norm_q: "norm_added_q",
    norm_k: "norm_added_k",
};

/// The image stream's attention over itself (SD 3.5 Medium).
pub(super) const IMAGE_ONLY: AttentionKeys = AttentionKeys { module: "attn2", id: "attn2", ..IMAGE };

/// One stream's projections into and out of an attention.
#[derive(Debug)]
pub(super) struct Projections {
    pub(super) q: TappedLinear,
    pub(super) k: TappedLinear,
    pub(super) v: TappedLinear,
    /// `None` for the text stream of the last block, which ends here.
    pub(super) o: Option<TappedLinear>,
    /// Weights of the normalization of queries and keys, `[head_dim]` each.
    norms: Option<(Array, Array)>,
    head_dim: i32,
}

/// Queries, keys and values of some tokens, `[batch, tokens, width]` each.
pub(super) struct Qkv {
    q: Array,
    k: Array,
    v: Array,
}

impl Projections {
    pub(super) fn load(
        make: &LayerMaker<'_, '_>,
        keys: AttentionKeys,
        config: &MmditConfig,
        key_bias: bool,
        with_output: bool,
    ) -> Self {
        let (width, head_dim) = (config.width(), config.attention_head_dim);
        let linear = |key: &str, name: &str, role| {
            let (key, name) = (format!("{}.{key}", keys.module), format!("{}.{name}", keys.id));
            make.linear(&key, &name, role, [width, width])
        };
        let norm = |key: &str| make.loader.tensor(&format!("{}.{key}.weight", keys.module), &[head_dim]);
        let norms = config.qk_norm.map(|QkNorm::RmsNorm| (norm(keys.norm_q), norm(keys.norm_k)));
        let mut k = linear(keys.k, "k_proj", Role::K);
        k.bias = k.bias.filter(|_| key_bias);
        Self {
            q: linear(keys.q, "q_proj", Role::Q),
            k,
            v: linear(keys.v, "v_proj", Role::V),
            o: with_output.then(|| linear(keys.o, "o_proj", Role::O)),
            norms,
            head_dim: head_dim as i32,
        }
    }

    /// Projects tokens, `[batch, tokens, width]`.
    pub(super) fn project(&self, x: &Array, tap: &mut dyn Tap) -> Result<Qkv> {
        let mut q = self.q.forward(x, tap)?;
        let mut k = self.k.forward(x, tap)?;
        let v = self.v.forward(x, tap)?;
        if let Some((norm_q, norm_k)) = &self.norms {
            q = self.norm(&q, norm_q)?;
            k = self.norm(&k, norm_k)?;
        }
        Ok(Qkv { q, k, v })
    }

    /// Normalizes each head on its own.
    fn norm(&self, x: &Array, weight: &Array) -> Result<Array> {
        let heads = x.reshape(&[x.dim(0), x.dim(1), -1, self.head_dim])?;
        Ok(ops::rms_norm(&heads, weight, EPS)?.reshape(x.shape())?)
    }
}

impl Qkv {
    /// Attention of these tokens over themselves.
    pub(super) fn attend(&self, heads: i32) -> Result<Array> {
        ops::attention(&self.q, &self.k, &self.v, heads, None)
    }

    /// Attention of the tokens of both streams over all of them; gives the image's part and the text's part.
    pub(super) fn attend_jointly(image: &Self, text: &Self, heads: i32) -> Result<(Array, Array)> {
        let join = |image: &Array, text: &Array| mlx_rs::ops::concatenate(&[image, text], 1);
        let joint =
            Self { q: join(&image.q, &text.q)?, k: join(&image.k, &text.k)?, v: join(&image.v, &text.v)? };
        let (out, cut) = (joint.attend(heads)?, image.q.dim(1));
        Ok((out.try_index((.., ..cut))?, out.try_index((.., cut..))?))
    }
}
