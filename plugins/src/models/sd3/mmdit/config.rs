//! Sizes of a transformer.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use taq_core::{Error, Result};

use crate::models::sd3::weights::Weights;

/// What [`Error::Malformed`] calls the file.
const KIND: &str = "transformer configuration";

/// The configuration of diffusers' `SD3Transformer2DModel`, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MmditConfig {
    #[serde(rename = "_class_name")]
    pub(super) class_name: String,
    /// Height and width of the latents trained on.
    pub(crate) sample_size: usize,
    /// Side of a patch, in latent pixels.
    pub(crate) patch_size: usize,
    /// Channels of the latent.
    pub(crate) in_channels: usize,
    /// Channels of the velocity; `None`: as many as the latent has.
    pub(crate) out_channels: Option<usize>,
    /// Blocks.
    pub(crate) num_layers: usize,
    /// Channels of an attention head.
    pub(crate) attention_head_dim: usize,
    /// Attention heads.
    pub(crate) num_attention_heads: usize,
    /// Channels of the text tokens.
    pub(crate) joint_attention_dim: usize,
    /// Channels of the text tokens inside the transformer; equal to the width.
    pub(crate) caption_projection_dim: usize,
    /// Channels of the pooled text embedding.
    pub(crate) pooled_projection_dim: usize,
    /// Side of the table of position embeddings, in patches.
    pub(crate) pos_embed_max_size: usize,
    /// Blocks whose image stream has a second attention over itself (SD 3.5 Medium).
    pub(crate) dual_attention_layers: BTreeSet<usize>,
    /// Normalization of queries and keys (SD 3.5).
    pub(crate) qk_norm: Option<QkNorm>,
}

/// Normalization of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QkNorm {
    /// Root mean square with a learned weight, per head.
    RmsNorm,
}

impl Default for MmditConfig {
    fn default() -> Self {
        Self {
            class_name: CLASS.into(),
            sample_size: 128,
            patch_size: 2,
            in_channels: 16,
            out_channels: Some(16),
            num_layers: 18,
            attention_head_dim: 64,
            num_attention_heads: 18,
            joint_attention_dim: 4096,
            caption_projection_dim: 1152,
            pooled_projection_dim: 2048,
            pos_embed_max_size: 96,
            dual_attention_layers: BTreeSet::new(),
            qk_norm: None,
        }
    }
}

/// The class that diffusers' configuration names.
const CLASS: &str = "SD3Transformer2DModel";

impl MmditConfig {
    /// Stable Diffusion 3 Medium: 24 blocks of width 1536, 285 quantizable linear layers.
    pub(crate) fn sd3_medium() -> Self {
        Self {
            num_layers: 24,
            num_attention_heads: 24,
            caption_projection_dim: 1536,
            pos_embed_max_size: 192,
            ..Self::default()
        }
    }

    /// Stable Diffusion 3.5 Medium: query and key normalization, a second attention in the first 13 blocks.
    #[cfg(test)]
    pub(crate) fn sd3_5_medium() -> Self {
        Self {
            pos_embed_max_size: 384,
            dual_attention_layers: (0..13).collect(),
            qk_norm: Some(QkNorm::RmsNorm),
            ..Self::sd3_medium()
        }
    }

    /// Stable Diffusion 3.5 Large: 38 blocks of width 2432, query and key normalization.
    #[cfg(test)]
    pub(crate) fn sd3_5_large() -> Self {
        Self {
            num_layers: 38,
            num_attention_heads: 38,
            caption_projection_dim: 2432,
            pos_embed_max_size: 192,
            qk_norm: Some(QkNorm::RmsNorm),
            ..Self::default()
        }
    }

    /// Channels of every token inside the transformer.
    pub(crate) fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of the MLP's inner layer.
    pub(crate) fn mlp_width(&self) -> usize {
        4 * self.width()
    }

    /// Channels of the velocity.
    pub(crate) fn velocity_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Whether this is the last block, whose text stream ends after attention.
    pub(crate) fn is_last(&self, block: usize) -> bool {
        block + 1 == self.num_layers
    }

    /// Reads diffusers' `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| Error::malformed(KIND, path, e))?;
        config.check().map_err(|reason| Error::malformed(KIND, path, reason))?;
        Ok(config)
    }

    /// The configuration that the shapes of an original-layout file imply. Heads are 64 channels wide unless
    /// query normalization says otherwise; the size of the latents trained on is not in the file and taken to
    /// be 128 (1024 pixels), as of all published models.
    pub(crate) fn infer(weights: &Weights, prefix: &str) -> Result<Self> {
        let malformed = |reason: String| Error::malformed(KIND, weights.path(), reason);
        let dim = |key: &str, axis: usize| {
            weights.shape(&format!("{prefix}{key}")).and_then(|s| s.get(axis).copied()).ok_or_else(|| {
                malformed(format!(
                    "`{prefix}{key}` is needed to tell the model's size, and is missing or scalar"
                ))
            })
        };
        let blocks_with = |module: &str| -> BTreeSet<usize> {
            let block = |key: &str| {
                let (number, rest) =
                    key.strip_prefix(prefix)?.strip_prefix("joint_blocks.")?.split_once('.')?;
                rest.starts_with(module).then(|| number.parse().ok())?
            };
            weights.keys().filter_map(block).collect()
        };
        let patch_size = dim("x_embedder.proj.weight", 2)?;
        let width = dim("context_embedder.weight", 0)?;
        let positions = dim("pos_embed", 1)?;
        let last = blocks_with("").last().copied().ok_or_else(|| {
            malformed(format!(
                "it has no `{prefix}joint_blocks.*`, so it is no Stable Diffusion 3 transformer"
            ))
        })?;
        let head_dim = dim("joint_blocks.0.x_block.attn.ln_q.weight", 0);
        let qk_norm = head_dim.is_ok().then_some(QkNorm::RmsNorm);
        let attention_head_dim = head_dim.unwrap_or(64);
        let config = Self {
            patch_size,
            in_channels: dim("x_embedder.proj.weight", 1)?,
            out_channels: Some(dim("final_layer.linear.weight", 0)? / patch_size.pow(2).max(1)),
            num_layers: last + 1,
            attention_head_dim,
            num_attention_heads: width / attention_head_dim.max(1),
            joint_attention_dim: dim("context_embedder.weight", 1)?,
            caption_projection_dim: width,
            pooled_projection_dim: dim("y_embedder.mlp.0.weight", 1)?,
            pos_embed_max_size: positions.isqrt(),
            dual_attention_layers: blocks_with("x_block.attn2."),
            qk_norm,
            ..Self::default()
        };
        config.check().map_err(malformed)?;
        Ok(config)
    }

    /// Whether the numbers make a transformer.
    fn check(&self) -> Result<(), String> {
        if self.class_name != CLASS {
            return Err(format!("it describes a `{}`; this model is a `{CLASS}`", self.class_name));
        }
        let sizes = [
            ("sample_size", self.sample_size, 1 << 14),
            ("patch_size", self.patch_size, 64),
            ("in_channels", self.in_channels, 1 << 12),
            ("out_channels", self.velocity_channels(), 1 << 12),
            ("num_layers", self.num_layers, 1 << 10),
            ("attention_head_dim", self.attention_head_dim, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("joint_attention_dim", self.joint_attention_dim, 1 << 16),
            ("caption_projection_dim", self.caption_projection_dim, 1 << 16),
            ("pooled_projection_dim", self.pooled_projection_dim, 1 << 16),
            ("pos_embed_max_size", self.pos_embed_max_size, 1 << 12),
        ];
        for (name, value, most) in sizes {
            if !(1..=most).contains(&value) {
                return Err(format!("`{name}` is {value}; expected 1 to {most}"));
            }
        }
        if self.caption_projection_dim != self.width() {
            return Err(format!(
                "`caption_projection_dim` is {}, but {} heads of {} channels make {}",
                self.caption_projection_dim,
                self.num_attention_heads,
                self.attention_head_dim,
                self.width()
            ));
        }
        match self.dual_attention_layers.last() {
            Some(last) if *last >= self.num_layers => {
                Err(format!("`dual_attention_layers` names block {last} of {}", self.num_layers))
            }
            _ => Ok(()),
        }
    }
}
