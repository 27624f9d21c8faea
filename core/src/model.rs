//! The model: what the engine asks of a diffusion transformer with its text encoders and its VAE.

use std::path::PathBuf;

use mlx_rs::{Array, Dtype, ops};

use crate::rows::take_rows;
use crate::{Arrangement, Checkpoint, Companions, Error, LayerId, ModelSpec, Result, Tap};

/// Prompts, encoded.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// Token embeddings, `[batch, tokens, width]`, f32.
    pub tokens: Array,
    /// Pooled embedding, `[batch, pooled width]`, f32.
    pub pooled: Array,
}

impl Conditioning {
    /// How many prompts.
    pub fn len(&self) -> usize {
        self.tokens.dim(0) as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The given rows, in the given order; a row may come several times.
    pub fn rows(&self, rows: &[usize]) -> Result<Self> {
        Ok(Self { tokens: take_rows(&self.tokens, rows)?, pooled: take_rows(&self.pooled, rows)? })
    }

    /// The rows of all parts, one after the other.
    pub fn concat(parts: &[&Self]) -> Result<Self> {
        let tokens: Vec<_> = parts.iter().map(|p| &p.tokens).collect();
        let pooled: Vec<_> = parts.iter().map(|p| &p.pooled).collect();
        Ok(Self { tokens: ops::concatenate(&tokens, 0)?, pooled: ops::concatenate(&pooled, 0)? })
    }
}

/// What flows into a transformer block and out of it.
#[derive(Debug, Clone)]
pub struct BlockIo {
    /// Image tokens, `[batch, tokens, width]`.
    pub hidden: Array,
    /// Text tokens, `[batch, tokens, width]`; `None` after the last block.
    pub context: Option<Array>,
    /// The modulation input, an embedding of timestep and pooled text, `[batch, width]`. It is carried with
    /// each row, so that a batch may mix prompts and timesteps.
    pub temb: Array,
    /// Timestep (1000 σ) of each row.
    pub timesteps: Vec<f32>,
}

/// Settings that suit a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDefaults {
    /// Steps of the sampler.
    pub steps: usize,
    /// Classifier-free guidance weight.
    pub cfg_weight: f32,
    /// Timestep shift of the schedule.
    pub shift: f32,
    /// Height and width of the image in pixels.
    pub image_size: (usize, usize),
    /// Prompts to calibrate on.
    pub calibration_prompts: Vec<String>,
}

/// A diffusion transformer with its text encoders and its VAE.
///
/// Latents and images are NHWC. Computation is lazy (MLX): an error of the graph may come at evaluation.
/// A toy model with one linear layer:
///
/// ```
/// use taq_core::*;
/// use taq_core::mlx_rs::{Array, ops};
///
/// struct Toy { spec: ModelSpec, weight: Array }
///
/// impl Model for Toy {
///     fn spec(&self) -> &ModelSpec { &self.spec }
///     fn defaults(&self) -> ModelDefaults {
///         ModelDefaults { steps: 4, cfg_weight: 0.0, shift: 1.0, image_size: (8, 8), calibration_prompts: vec![] }
///     }
///     fn condition(&self, prompts: &[String]) -> Result<Conditioning> {
///         let zeros = ops::zeros::<f32>(&[prompts.len() as i32, 1, 4])?;
///         Ok(Conditioning { pooled: zeros.squeeze_axes(&[1])?, tokens: zeros })
///     }
///     fn embed(&self, x: &Array, timesteps: &[f32], c: &Conditioning, _: &mut dyn Tap) -> Result<BlockIo> {
///         let hidden = x.reshape(&[x.dim(0), -1, x.dim(3)])?;
///         Ok(BlockIo { hidden, context: None, temb: c.pooled.clone(), timesteps: timesteps.to_vec() })
///     }
///     fn block_forward(&self, block: usize, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo> {
///         let layer = &self.spec.blocks[block].layers[0];
///         let hidden = tap.linear(LinearCall { layer, input: &io.hidden, weight: &self.weight, bias: None })?;
///         Ok(BlockIo { hidden, ..io.clone() })
///     }
///     fn unembed(&self, io: &BlockIo, latent: (usize, usize), _: &mut dyn Tap) -> Result<Array> {
///         Ok(io.hidden.reshape(&[io.hidden.dim(0), latent.0 as i32, latent.1 as i32, -1])?)
///     }
///     fn decode(&self, latent: &Array) -> Result<Array> { Ok(latent.clone()) }
///     fn encode(&self, image: &Array) -> Result<Array> { Ok(image.clone()) }
///     fn weight(&self, _: &LayerId) -> Result<Array> { Ok(self.weight.clone()) }
///     fn set_weight(&mut self, _: &LayerId, weight: Array) -> Result<()> { self.weight = weight; Ok(()) }
/// }
/// ```
pub trait Model {
    /// Blocks, quantizable layers, shapes.
    fn spec(&self) -> &ModelSpec;

    /// Settings that suit the model.
    fn defaults(&self) -> ModelDefaults;

    /// Element type that the transformer computes in; its velocity has it too. All stages but `generate` need `Float32`.
    fn dtype(&self) -> Dtype {
        Dtype::Float32
    }

    /// Folder of the [evaluator](crate::evaluator) that comes with the model, if one does.
    fn evaluator(&self) -> Option<PathBuf> {
        None
    }

    /// Encodes prompts; an empty string is the unconditional one.
    fn condition(&self, prompts: &[String]) -> Result<Conditioning>;

    /// What the first block sees: `x` is `[batch, h, w, channels]`, with one timestep (1000 σ) and one row of
    /// conditioning for each row of the batch. Like [`Self::block_forward`], it does not call [`Tap::begin`].
    fn embed(
        &self,
        x: &Array,
        timesteps: &[f32],
        conditioning: &Conditioning,
        tap: &mut dyn Tap,
    ) -> Result<BlockIo>;

    /// One block. It does not call [`Tap::begin`]; the caller does.
    fn block_forward(&self, block: usize, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo>;

    /// From the last block's image tokens to a velocity, `[batch, h, w, channels]`; `latent` is (h, w).
    fn unembed(&self, io: &BlockIo, latent: (usize, usize), tap: &mut dyn Tap) -> Result<Array>;

    /// The whole transformer: velocity `[batch, h, w, channels]`. A batch may mix timesteps.
    fn denoise(
        &self,
        x: &Array,
        timesteps: &[f32],
        conditioning: &Conditioning,
        tap: &mut dyn Tap,
    ) -> Result<Array> {
        tap.begin(timesteps)?;
        let mut io = self.embed(x, timesteps, conditioning, tap)?;
        for block in 0..self.spec().blocks.len() {
            io = self.block_forward(block, &io, tap)?;
        }
        self.unembed(&io, (x.dim(1) as usize, x.dim(2) as usize), tap)
    }

    /// Latents `[batch, h, w, channels]` to images `[batch, H, W, 3]` in 0..1, clipped.
    fn decode(&self, latent: &Array) -> Result<Array>;

    /// Images `[batch, H, W, 3]` in 0..1 to latents (the mean) `[batch, h, w, channels]`.
    fn encode(&self, image: &Array) -> Result<Array>;

    /// The weight of a layer, quantizable or weight-only, `[out_features, in_features]`.
    fn weight(&self, layer: &LayerId) -> Result<Array>;

    /// Replaces the weight of a quantizable layer by one of the same shape.
    fn set_weight(&mut self, layer: &LayerId, weight: Array) -> Result<()>;

    /// The transformer's weights under diffusers' names, for exports; read anew.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has none.
    fn checkpoint(&self) -> Result<Checkpoint> {
        Err(Error::Unsupported { what: format!("export of the model `{}`", self.spec().name) })
    }

    /// What else belongs to the model in such an arrangement, for exports of all of it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if something is missing that the arrangement needs.
    fn companions(&self, _arrangement: Arrangement) -> Result<Companions> {
        Err(Error::Unsupported { what: format!("export of the whole model `{}`", self.spec().name) })
    }
}
