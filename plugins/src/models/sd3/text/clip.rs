//! CLIP's text encoder, as `CLIPTextModelWithProjection` of huggingface/transformers 5.23 computes it
//! (Radford et al., <https://arxiv.org/abs/2103.00020>).

use mlx_rs::{Array, ops};
use serde::Deserialize;
use taq_core::{Error, Result};

use crate::models::sd3::ops::{Linear, attention, gelu_erf, gelu_tanh, layer_norm, quick_gelu};
use crate::models::sd3::source::Component;
use crate::models::sd3::weights::{Layout, Loader};

/// What [`Error::Malformed`] calls the configuration.
const KIND: &str = "configuration of a CLIP text encoder";

/// Prompts that run through the encoder at a time.
const BATCH: usize = 32;

/// The activation between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Activation {
    QuickGelu,
    Gelu,
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
}

/// Sizes of a text encoder, under the names of transformers' `CLIPTextConfig`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ClipConfig {
    /// Channels of a token.
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    /// Longest row of tokens.
    pub(super) max_position_embeddings: usize,
    vocab_size: usize,
    /// Channels of the pooled embedding.
    pub(super) projection_dim: usize,
    hidden_act: Activation,
    #[serde(default = "layer_norm_eps")]
    layer_norm_eps: f32,
    /// The end token. 2 is the mark of old configurations, whose end token is the largest id of a row.
    #[serde(default = "legacy_end")]
    eos_token_id: i32,
}

fn layer_norm_eps() -> f32 {
    1e-5
}

const LEGACY_END: i32 = 2;

fn legacy_end() -> i32 {
    LEGACY_END
}

impl ClipConfig {
    /// CLIP ViT-L/14's, the first encoder of Stable Diffusion 3.
    fn clip_l() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            num_hidden_layers: 12,
            max_position_embeddings: 77,
            vocab_size: 49408,
            projection_dim: 768,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: layer_norm_eps(),
            eos_token_id: LEGACY_END,
        }
    }

    /// OpenCLIP ViT-bigG/14's, the second one.
    fn clip_g() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_attention_heads: 20,
            num_hidden_layers: 32,
            projection_dim: 1280,
            hidden_act: Activation::Gelu,
            ..Self::clip_l()
        }
    }

    /// Reads the configuration of CLIP-L.
    pub(super) fn read_l(component: &Component) -> Result<Self> {
        component.read_config(KIND, Self::clip_l)?.checked(component)
    }

    /// Reads the configuration of CLIP-G.
    pub(super) fn read_g(component: &Component) -> Result<Self> {
        component.read_config(KIND, Self::clip_g)?.checked(component)
    }

    fn checked(self, component: &Component) -> Result<Self> {
        let malformed = |reason| Err(Error::malformed(KIND, component.config_or_weights(), reason));
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
            ("projection_dim", self.projection_dim),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..1 << 24).contains(size)) {
            return malformed(format!("`{name}` is {size}"));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            return malformed(format!("{heads} heads do not divide `hidden_size` {width}"));
        }
        Ok(self)
    }
}

/// A loaded text encoder.
pub(super) struct Clip {
    config: ClipConfig,
    token_embedding: Array,
    position_embedding: Array,
    layers: Vec<Layer>,
    final_norm: Norm,
    /// Without bias; `None` is the identity, which single-file checkpoints leave out.
    projection: Option<Linear>,
}

/// What a text encoder says of its prompts.
pub(super) struct ClipOutput {
    /// `[rows, tokens, hidden_size]`: the tokens before the last layer.
    pub(super) hidden: Array,
    /// `[rows, projection_dim]`: the end token after the last layer, normalized and projected.
    pub(super) pooled: Array,
}

struct Layer {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

struct Norm {
    weight: Array,
    bias: Array,
    eps: f32,
}

impl Norm {
    fn load(loader: &Loader<'_>, name: &str, config: &ClipConfig) -> Self {
        let size = [config.hidden_size];
        Self {
            weight: loader.tensor(&format!("{name}.weight"), &size),
            bias: loader.tensor(&format!("{name}.bias"), &size),
            eps: config.layer_norm_eps,
        }
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, config: &ClipConfig) -> Self {
        let linear = |name: &str, from: usize, to: usize| Linear {
            weight: loader.tensor(&format!("{name}.weight"), &[to, from]),
            bias: Some(loader.tensor(&format!("{name}.bias"), &[to])),
        };
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            norm1: Norm::load(loader, "layer_norm1", config),
            q: linear("self_attn.q_proj", width, width),
            k: linear("self_attn.k_proj", width, width),
            v: linear("self_attn.v_proj", width, width),
            out: linear("self_attn.out_proj", width, width),
            norm2: Norm::load(loader, "layer_norm2", config),
            fc1: linear("mlp.fc1", width, inner),
            fc2: linear("mlp.fc2", inner, width),
        }
    }

    /// `x` is `[rows, tokens, width]`, `mask` `[tokens, tokens]`.
    fn forward(&self, x: &Array, mask: &Array, config: &ClipConfig) -> Result<Array> {
        let h = self.norm1.forward(x)?;
        let (q, k, v) = (self.q.forward(&h)?, self.k.forward(&h)?, self.v.forward(&h)?);
        let h = attention(&q, &k, &v, config.num_attention_heads as i32, Some(mask))?;
        let x = x.add(self.out.forward(&h)?)?;
        let h = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let h = match config.hidden_act {
            Activation::QuickGelu => quick_gelu(&h)?,
            Activation::Gelu => gelu_erf(&h)?,
            Activation::GeluNew => gelu_tanh(&h)?,
        };
        Ok(x.add(self.fc2.forward(&h)?)?)
    }
}

impl Clip {
    /// Loads the weights.
    ///
    /// # Errors
    /// [`Error::Weights`] with everything that does not fit the configuration; [`Error::Io`], [`Error::Malformed`].
    pub(super) fn load(component: &Component, config: &ClipConfig) -> Result<Self> {
        let weights = component.open()?;
        let loader = Loader::with_layout(&weights, Layout::prefixed(component.prefix));
        // Buffers that old versions of transformers and OpenCLIP's conversions leave behind.
        loader.ignore(|key| key.ends_with("position_ids") || key == "logit_scale");
        let model = loader.scope("text_model");
        let width = config.hidden_size;
        let clip = Self {
            config: config.clone(),
            token_embedding: model.tensor("embeddings.token_embedding.weight", &[config.vocab_size, width]),
            position_embedding: model
                .tensor("embeddings.position_embedding.weight", &[config.max_position_embeddings, width]),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&model.scope(&format!("encoder.layers.{i}")), config))
                .collect(),
            final_norm: Norm::load(&model, "final_layer_norm", config),
            projection: loader
                .optional("text_projection.weight", &[config.projection_dim, width])
                .map(|weight| Linear { weight, bias: None }),
        };
        loader.finish()?;
        if clip.projection.is_none() && config.projection_dim != width {
            let reason = format!("without `text_projection`, `projection_dim` must be `hidden_size` {width}");
            return Err(Error::malformed(KIND, component.config_or_weights(), reason));
        }
        Ok(clip)
    }

    /// Bytes of its parameters in memory.
    pub(super) fn bytes(&self) -> usize {
        let layer = self.layers.first().map_or(0, |l| {
            let linears = [&l.q, &l.k, &l.v, &l.out, &l.fc1, &l.fc2];
            linears.iter().map(|l| l.weight.nbytes()).sum::<usize>()
        });
        self.token_embedding.nbytes() + self.layers.len() * layer
    }

    /// Encodes rows of `length` token ids, row-major.
    ///
    /// # Errors
    /// [`Error::Settings`] if the tokenizer and the encoder do not belong together.
    pub(super) fn encode(&self, ids: &[i32], length: usize) -> Result<ClipOutput> {
        check_ids(ids, self.config.vocab_size)?;
        let (mut hidden, mut pooled) = (vec![], vec![]);
        for ids in ids.chunks(BATCH * length) {
            let output = self.encode_batch(ids, length)?;
            mlx_rs::transforms::eval([&output.hidden, &output.pooled])?;
            hidden.push(output.hidden);
            pooled.push(output.pooled);
        }
        Ok(ClipOutput { hidden: ops::concatenate(&hidden, 0)?, pooled: ops::concatenate(&pooled, 0)? })
    }

    fn encode_batch(&self, ids: &[i32], length: usize) -> Result<ClipOutput> {
        let rows = ids.len() / length;
        let tokens =
            self.token_embedding.take_axis(Array::from_slice(ids, &[rows as i32, length as i32]), 0)?;
        let positions: Vec<i32> = (0..length as i32).collect();
        let positions =
            self.position_embedding.take_axis(Array::from_slice(&positions, &[length as i32]), 0)?;
        let mut x = tokens.add(positions)?;
        let mask = causal(length);
        let mut hidden = x.clone();
        for layer in &self.layers {
            hidden = x;
            x = layer.forward(&hidden, &mask, &self.config)?;
        }
        let ends: Vec<i32> =
            (0..).zip(ids.chunks(length)).map(|(r, ids)| r * length as i32 + self.end(ids)).collect();
        let flat = x.reshape(&[(rows * length) as i32, -1])?;
        let end = flat.take_axis(Array::from_slice(&ends, &[rows as i32]), 0)?;
        let end = self.final_norm.forward(&end)?;
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&end)?,
            None => end,
        };
        Ok(ClipOutput { hidden, pooled })
    }

    /// Where the row ends: the first end token; in old configurations, the first of the largest ids.
    fn end(&self, ids: &[i32]) -> i32 {
        let wanted = match self.config.eos_token_id {
            LEGACY_END => ids.iter().copied().max().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|&id| id == wanted).unwrap_or(0) as i32
    }
}

/// `[length, length]`: 0 where a token may look (itself and what came before), −∞ elsewhere.
fn causal(length: usize) -> Array {
    let mask: Vec<f32> = (0..length)
        .flat_map(|from| (0..length).map(move |to| if to <= from { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Array::from_slice(&mask, &[length as i32, length as i32])
}

/// That every id is in the vocabulary.
pub(super) fn check_ids(ids: &[i32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= vocabulary)) {
        None => Ok(()),
        Some(id) => Err(Error::settings(
            "model setting `source`",
            format!(
                "the tokenizer gives the id {id}, but the text encoder knows {vocabulary} tokens; do the two belong \
                 together?"
            ),
        )),
    }
}
