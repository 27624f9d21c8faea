//! The encoder of T5 v1.1, as `T5EncoderModel` of huggingface/transformers 5.23 computes it
//! (Raffel et al., <https://arxiv.org/abs/1910.10683>): RMS norms, relative position biases that all layers share,
//! unscaled scores, a gated GELU, no biases.
//!
//! T5-XXL has 4.8 billion parameters, 19 GB in f32. It is therefore never in memory as a whole: its layers are read
//! one after another, each is applied to all prompts and let go.

use mlx_rs::{Array, ops};
use serde::Deserialize;
use taq_core::{Error, Result, WeightIssue};

use super::clip::check_ids;
use crate::models::sd3::ops::{attention_scaled, gelu_tanh, linear, rms_norm};
use crate::models::sd3::source::Component;
use crate::models::sd3::weights::{Layout, Loader, Weights};

/// What [`Error::Malformed`] calls the configuration.
const KIND: &str = "configuration of a T5 encoder";

/// Prompts that one reading of the layers serves.
const WAVE: usize = 128;

/// Prompts that run through a layer at a time.
const BATCH: usize = 8;

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum FeedForward {
    /// `wo(gelu(wi_0 x) · wi_1 x)`, with GELU's tanh approximation.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// Sizes of the encoder, under the names of transformers' `T5Config`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct T5Config {
    /// Channels of a token.
    pub(super) d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_heads: usize,
    num_layers: usize,
    vocab_size: usize,
    #[serde(default = "num_buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "max_distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "layer_norm_epsilon")]
    layer_norm_epsilon: f32,
    #[expect(dead_code, reason = "read so that other kinds are refused")]
    feed_forward_proj: FeedForward,
}

fn num_buckets() -> usize {
    32
}

fn max_distance() -> usize {
    128
}

fn layer_norm_epsilon() -> f32 {
    1e-6
}

impl T5Config {
    /// T5 v1.1 XXL's.
    fn xxl() -> Self {
        Self {
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_heads: 64,
            num_layers: 24,
            vocab_size: 32128,
            relative_attention_num_buckets: num_buckets(),
            relative_attention_max_distance: max_distance(),
            layer_norm_epsilon: layer_norm_epsilon(),
            feed_forward_proj: FeedForward::GatedGelu,
        }
    }

    /// Reads the configuration.
    pub(super) fn read(component: &Component) -> Result<Self> {
        let config = component.read_config(KIND, Self::xxl)?;
        let sizes = [
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_heads", config.num_heads),
            ("num_layers", config.num_layers),
            ("vocab_size", config.vocab_size),
        ];
        let malformed = |reason| Err(Error::malformed(KIND, component.config_or_weights(), reason));
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..1 << 24).contains(size)) {
            return malformed(format!("`{name}` is {size}"));
        }
        let (buckets, distance) =
            (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        if !(4..1 << 16).contains(&buckets)
            || buckets % 4 != 0
            || distance <= buckets / 4
            || distance >= 1 << 24
        {
            return malformed(format!("{buckets} buckets for relative positions up to {distance}"));
        }
        Ok(config)
    }

    fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }
}

/// The encoder: where its weights are, checked, but not read.
pub(super) struct T5Encoder {
    config: T5Config,
    weights: Weights,
    prefix: &'static str,
    /// Name of the token embedding, which files have under one name or the other, or under both.
    embedding: &'static str,
}

const SHARED: &str = "shared.weight";
const EMBED_TOKENS: &str = "encoder.embed_tokens.weight";
const RELATIVE_BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
const FINAL_NORM: &str = "encoder.final_layer_norm.weight";

/// One layer's tensors; all are `[out, in]` or, the norms, `[d_model]`.
struct Block {
    norm1: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    norm2: Array,
    wi_0: Array,
    wi_1: Array,
    wo: Array,
}

impl Block {
    /// Names and shapes below `encoder.block.{i}`, in the order of the fields.
    fn tensors(c: &T5Config) -> [(&'static str, Vec<usize>); 9] {
        let (width, inner) = (c.d_model, c.inner());
        [
            ("layer.0.layer_norm.weight", vec![width]),
            ("layer.0.SelfAttention.q.weight", vec![inner, width]),
            ("layer.0.SelfAttention.k.weight", vec![inner, width]),
            ("layer.0.SelfAttention.v.weight", vec![inner, width]),
            ("layer.0.SelfAttention.o.weight", vec![width, inner]),
            ("layer.1.layer_norm.weight", vec![width]),
            ("layer.1.DenseReluDense.wi_0.weight", vec![c.d_ff, width]),
            ("layer.1.DenseReluDense.wi_1.weight", vec![c.d_ff, width]),
            ("layer.1.DenseReluDense.wo.weight", vec![width, c.d_ff]),
        ]
    }

    fn load(loader: &Loader<'_>, config: &T5Config) -> Self {
        let [norm1, q, k, v, o, norm2, wi_0, wi_1, wo] =
            Self::tensors(config).map(|(name, shape)| loader.tensor(name, &shape));
        Self { norm1, q, k, v, o, norm2, wi_0, wi_1, wo }
    }

    /// `x` is `[rows, tokens, d_model]`, `bias` `[heads, tokens, tokens]`.
    fn forward(&self, x: &Array, bias: &Array, c: &T5Config) -> Result<Array> {
        let h = rms_norm(x, &self.norm1, c.layer_norm_epsilon)?;
        let (q, k, v) = (linear(&h, &self.q, None)?, linear(&h, &self.k, None)?, linear(&h, &self.v, None)?);
        let h = attention_scaled(&q, &k, &v, c.num_heads as i32, 1.0, Some(bias))?;
        let x = x.add(linear(&h, &self.o, None)?)?;
        let h = rms_norm(&x, &self.norm2, c.layer_norm_epsilon)?;
        let gate = gelu_tanh(&linear(&h, &self.wi_0, None)?)?;
        let h = gate.multiply(linear(&h, &self.wi_1, None)?)?;
        Ok(x.add(linear(&h, &self.wo, None)?)?)
    }
}

impl T5Encoder {
    /// Opens the weights and checks names and shapes of all tensors.
    ///
    /// # Errors
    /// [`Error::Weights`] with everything that does not fit the configuration; [`Error::Io`], [`Error::Malformed`].
    pub(super) fn open(component: &Component, config: &T5Config) -> Result<Self> {
        let weights = component.open()?;
        let prefix = component.prefix;
        let has = |name: &str| weights.shape(&format!("{prefix}{name}")).is_some();
        let embedding = if !has(SHARED) && has(EMBED_TOKENS) { EMBED_TOKENS } else { SHARED };
        let width = config.d_model;
        let mut expected = vec![
            (embedding.to_owned(), vec![config.vocab_size, width]),
            (RELATIVE_BIAS.to_owned(), vec![config.relative_attention_num_buckets, config.num_heads]),
            (FINAL_NORM.to_owned(), vec![width]),
        ];
        for i in 0..config.num_layers {
            let block = Block::tensors(config);
            expected.extend(block.map(|(name, shape)| (format!("encoder.block.{i}.{name}"), shape)));
        }
        let mut issues = vec![];
        for (name, shape) in expected {
            let key = format!("{prefix}{name}");
            match weights.shape(&key) {
                None => issues.push(WeightIssue::Missing { key, shape }),
                Some(found) if found != shape => {
                    issues.push(WeightIssue::Shape { found: found.to_vec(), key, expected: shape });
                }
                Some(_) => {}
            }
        }
        if !issues.is_empty() {
            issues.sort_by_key(ToString::to_string);
            return Err(Error::Weights { path: weights.path().to_owned(), issues });
        }
        Ok(Self { config: config.clone(), weights, prefix, embedding })
    }

    /// Encodes rows of `length` token ids, row-major, to `[rows, length, d_model]`.
    pub(super) fn encode(&self, ids: &[i32], length: usize) -> Result<Array> {
        check_ids(ids, self.config.vocab_size)?;
        let waves: Vec<Array> =
            ids.chunks(WAVE * length).map(|ids| self.encode_wave(ids, length)).collect::<Result<_>>()?;
        Ok(ops::concatenate(&waves, 0)?)
    }

    fn encode_wave(&self, ids: &[i32], length: usize) -> Result<Array> {
        let c = &self.config;
        let loader = Loader::with_layout(&self.weights, Layout::prefixed(self.prefix));
        loader.ignore(|key| key == SHARED || key == EMBED_TOKENS);
        let table = loader.tensor(self.embedding, &[c.vocab_size, c.d_model]);
        let batches = ids.chunks(BATCH * length).map(|ids| {
            let rows = (ids.len() / length) as i32;
            Ok(table.take_axis(Array::from_slice(ids, &[rows, length as i32]), 0)?)
        });
        let mut batches: Vec<Array> = batches.collect::<Result<_>>()?;
        mlx_rs::transforms::eval(&batches)?;
        drop(table);

        let bias = self.position_bias(&loader, length)?;
        for i in 0..c.num_layers {
            let block = Block::load(&loader.scope(&format!("encoder.block.{i}")), c);
            for x in &mut batches {
                *x = block.forward(x, &bias, c)?;
                x.eval()?;
            }
        }
        let weight = loader.tensor(FINAL_NORM, &[c.d_model]);
        loader.finish()?;
        for x in &mut batches {
            *x = rms_norm(x, &weight, c.layer_norm_epsilon)?;
        }
        let all = ops::concatenate(&batches, 0)?;
        all.eval()?;
        Ok(all)
    }

    /// `[heads, length, length]`: what is added to the score of each pair of positions.
    fn position_bias(&self, loader: &Loader<'_>, length: usize) -> Result<Array> {
        let c = &self.config;
        let table = loader.tensor(RELATIVE_BIAS, &[c.relative_attention_num_buckets, c.num_heads]);
        let length = length as i32;
        let buckets: Vec<i32> = (0..length)
            .flat_map(|from| (0..length).map(move |to| to - from))
            .map(|distance| {
                bucket(distance, c.relative_attention_num_buckets, c.relative_attention_max_distance)
            })
            .collect();
        let bias = table.take_axis(Array::from_slice(&buckets, &[length, length]), 0)?;
        Ok(bias.transpose_axes(&[2, 0, 1])?)
    }
}

/// The bucket of a distance: half of the buckets for each direction, of these one half for one distance each, the
/// rest growing logarithmically up to `max_distance`.
fn bucket(distance: i32, buckets: usize, max_distance: usize) -> i32 {
    let buckets = buckets as i32 / 2;
    let forward = if distance > 0 { buckets } else { 0 };
    let distance = distance.abs();
    let exact = buckets / 2;
    if distance < exact {
        return forward + distance;
    }
    let scale = (max_distance as f32 / exact as f32).ln();
    let beyond = (distance as f32 / exact as f32).ln() / scale * (buckets - exact) as f32;
    forward + (exact + beyond as i32).min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// From `T5Attention._relative_position_bucket(…, bidirectional=True, num_buckets=32, max_distance=128)`.
    #[test]
    fn buckets_grow_with_the_distance() {
        let first_of_each = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for (b, &first) in (0..).zip(&first_of_each) {
            assert_eq!(bucket(-first, 32, 128), b, "distance {first}");
            assert_eq!(bucket(first, 32, 128), if first == 0 { 0 } else { 16 + b }, "distance {first}");
            if first > 0 {
                assert_eq!(bucket(1 - first, 32, 128), b - 1, "distance {first} less one");
            }
        }
        assert_eq!(bucket(-100_000, 32, 128), 15);
    }
}
