//! From prompts to what the transformer is conditioned on, as diffusers' `StableDiffusion3Pipeline.encode_prompt`
//! does it (huggingface/diffusers@58eb52c080, `pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py`).
//!
//! CLIP-L and CLIP-G see the same prompt. Their tokens are joined on the channels, filled up with zeros to the
//! transformer's token width, and followed by T5's tokens; without T5, by as many zero tokens as CLIP has. The two
//! pooled embeddings are joined. Nothing is masked.

mod clip;
mod t5;
mod tokenizer;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;

use mlx_rs::{Array, ops};
use taq_core::{Conditioning, Error, Result};

use self::clip::{Clip, ClipConfig, ClipOutput};
use self::t5::{T5Config, T5Encoder};
use self::tokenizer::{Kind, Tokenizer};
use super::source::{Component, ModelFiles, T5};

/// Length of T5's rows: diffusers' default for `max_sequence_length`.
const T5_TOKENS: usize = 256;

/// CLIP encoders up to this many bytes stay in memory after their first use.
const RESIDENT: usize = 1 << 30;

/// The text encoders of a model and their tokenizers.
///
/// Configurations are read and checked when this is made. Tokenizers and weights are read when prompts come: pass
/// all prompts of a task at once, for the encoders of the full-size model are let go after each call.
pub(crate) struct TextEncoders {
    files: ModelFiles,
    clip: Option<Clips>,
    t5: Option<(Component, T5Config)>,
    /// Channels of a token for the transformer.
    width: usize,
    resident: RefCell<Option<Loaded>>,
}

/// Both CLIP encoders of a model, as configured.
struct Clips {
    l: (Component, ClipConfig),
    g: (Component, ClipConfig),
}

/// Both CLIP encoders, loaded.
struct Loaded {
    l: Clip,
    g: Clip,
}

impl TextEncoders {
    /// Reads the configurations. `width` is the transformer's `joint_attention_dim`, `pooled` its
    /// `pooled_projection_dim`.
    ///
    /// A model whose files lack encoders or tokenizers is accepted here and refused by [`Self::encode`].
    ///
    /// # Errors
    /// [`Error::Malformed`] for a configuration that cannot be read, has a value that taq does not know, or does not
    /// fit the transformer.
    pub(crate) fn load(files: &ModelFiles, t5: T5, width: usize, pooled: usize) -> Result<Self> {
        let clip = match (&files.clip_l, &files.clip_g) {
            (Some(l), Some(g)) => {
                let (config_l, config_g) = (ClipConfig::read_l(l)?, ClipConfig::read_g(g)?);
                let channels = config_l.hidden_size + config_g.hidden_size;
                let pooled_channels = config_l.projection_dim + config_g.projection_dim;
                if channels > width || pooled_channels != pooled {
                    let reason = format!(
                        "together with CLIP-L it gives {channels} channels a token and {pooled_channels} pooled ones, \
                         but the transformer takes up to {width} and exactly {pooled}"
                    );
                    let kind = "configuration of CLIP-G for this transformer";
                    return Err(Error::malformed(kind, g.config_or_weights(), reason));
                }
                Some(Clips { l: (l.clone(), config_l), g: (g.clone(), config_g) })
            }
            _ => None,
        };
        let t5 = match &files.t5 {
            Some(component) if t5 != T5::Off => {
                let config = T5Config::read(component)?;
                if config.d_model != width {
                    let reason =
                        format!("`d_model` is {}, but the transformer takes {width}", config.d_model);
                    let kind = "configuration of T5 for this transformer";
                    return Err(Error::malformed(kind, component.config_or_weights(), reason));
                }
                Some((component.clone(), config))
            }
            _ => None,
        };
        Ok(Self { files: files.clone(), clip, t5, width, resident: RefCell::default() })
    }

    /// Encodes prompts, each distinct one once: tokens `[prompts, tokens, width]` and pooled embeddings
    /// `[prompts, pooled]`.
    ///
    /// # Errors
    /// [`Error::Settings`] if the model has no text encoders or tokenizers; [`Error::Weights`] and
    /// [`Error::Malformed`] if their files are not what they should be.
    pub(crate) fn encode(&self, prompts: &[String]) -> Result<Conditioning> {
        let mut distinct: Vec<&str> = vec![];
        let mut places: HashMap<&str, i32> = HashMap::new();
        let rows: Vec<i32> = prompts
            .iter()
            .map(|prompt| {
                *places.entry(prompt).or_insert_with(|| {
                    distinct.push(prompt);
                    distinct.len() as i32 - 1
                })
            })
            .collect();
        let ids = self.tokenize(&distinct)?;
        let Conditioning { tokens, pooled } = self.encode_ids(&ids)?;
        if distinct.len() == prompts.len() {
            return Ok(Conditioning { tokens, pooled });
        }
        let rows = Array::from_slice(&rows, &[rows.len() as i32]);
        Ok(Conditioning { tokens: tokens.take_axis(&rows, 0)?, pooled: pooled.take_axis(&rows, 0)? })
    }

    /// The ids of some prompts under all tokenizers.
    fn tokenize(&self, prompts: &[&str]) -> Result<TokenIds> {
        let clips = self.clips()?;
        let load = |folder: &Option<std::path::PathBuf>, name: &str, kind| match folder {
            Some(folder) => Tokenizer::load(folder, kind),
            None => Err(Error::settings(
                "model setting `source`",
                format!("`{}` has no folder `{name}`, so it cannot take prompts", self.files.root.display()),
            )),
        };
        let l = load(&self.files.tokenizer_l, "tokenizer", Kind::ClipL)?;
        let g = load(&self.files.tokenizer_g, "tokenizer_2", Kind::ClipG)?;
        let longest = clips.l.1.max_position_embeddings.min(clips.g.1.max_position_embeddings);
        let length = l.max_length().unwrap_or(longest).min(longest);
        let t5 = match &self.t5 {
            Some(_) => {
                let tokenizer = load(&self.files.tokenizer_t5, "tokenizer_3", Kind::T5)?;
                Some((tokenizer.encode(prompts, T5_TOKENS)?, T5_TOKENS))
            }
            None => None,
        };
        Ok(TokenIds { l: l.encode(prompts, length)?, g: g.encode(prompts, length)?, length, t5 })
    }

    /// Encodes rows of ids.
    fn encode_ids(&self, ids: &TokenIds) -> Result<Conditioning> {
        let (l, g) = self.encode_clip(ids)?;
        let clip = ops::concatenate(&[&l.hidden, &g.hidden], 2)?;
        let (rows, length) = (clip.dim(0), clip.dim(1));
        let width = self.width as i32;
        let filling = ops::zeros::<f32>(&[rows, length, width - clip.dim(2)])?;
        let clip = ops::concatenate(&[&clip, &filling], 2)?;
        let rest = match (&self.t5, &ids.t5) {
            (Some((component, config)), Some((ids, length))) => {
                T5Encoder::open(component, config)?.encode(ids, *length)?
            }
            _ => ops::zeros::<f32>(&[rows, length, width])?,
        };
        let tokens = ops::concatenate(&[&clip, &rest], 1)?;
        let pooled = ops::concatenate(&[&l.pooled, &g.pooled], 1)?;
        mlx_rs::transforms::eval([&tokens, &pooled])?;
        Ok(Conditioning { tokens, pooled })
    }

    fn encode_clip(&self, ids: &TokenIds) -> Result<(ClipOutput, ClipOutput)> {
        let mut resident = self.resident.borrow_mut();
        let loaded = match resident.take() {
            Some(loaded) => loaded,
            None => {
                let clips = self.clips()?;
                Loaded { l: Clip::load(&clips.l.0, &clips.l.1)?, g: Clip::load(&clips.g.0, &clips.g.1)? }
            }
        };
        let (l, g) = (loaded.l.encode(&ids.l, ids.length)?, loaded.g.encode(&ids.g, ids.length)?);
        if loaded.l.bytes() + loaded.g.bytes() <= RESIDENT {
            *resident = Some(loaded);
        }
        Ok((l, g))
    }

    fn clips(&self) -> Result<&Clips> {
        self.clip.as_ref().ok_or_else(|| {
            Error::settings(
                "model setting `source`",
                format!(
                    "`{}` has no text encoders, so it cannot take prompts; put `text_encoder` and `text_encoder_2`, \
                     or `clip_l.safetensors` and `clip_g.safetensors`, beside it",
                    self.files.root.display()
                ),
            )
        })
    }
}

/// Rows of token ids of the same prompts, row-major.
struct TokenIds {
    l: Vec<i32>,
    g: Vec<i32>,
    /// Ids a row for both CLIPs.
    length: usize,
    /// T5's, with their length.
    t5: Option<(Vec<i32>, usize)>,
}
