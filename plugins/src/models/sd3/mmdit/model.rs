//! The whole transformer.

use std::collections::{BTreeMap, HashMap};

use mlx_rs::{Array, Dtype};
use taq_core::{BlockIo, BlockSpec, Conditioning, Error, LayerId, Result, StoredTensor, Tap, WeightOnlySpec};

use super::attention::{EPS, TappedLinear};
use super::block::Block;
use super::embed::{PatchEmbed, TimeTextEmbed, halves};
use super::weight_only::WeightOnlyLinear;
use super::{Compat, MmditConfig, names};
use crate::models::sd3::ops::{Linear, layer_norm_modulate, silu};
use crate::models::sd3::source::{Component, Naming};
use crate::models::sd3::weights::{Layout, Loader, Weights};

/// The transformer of Stable Diffusion 3 and 3.5: velocity from latent, timestep and encoded prompt.
#[derive(Debug)]
pub(crate) struct Mmdit {
    config: MmditConfig,
    /// Element type of all weights and of what is computed with them.
    dtype: Dtype,
    patch_embed: PatchEmbed,
    time_text_embed: TimeTextEmbed,
    context_embedder: WeightOnlyLinear,
    blocks: Vec<Block>,
    /// Gives (scale, shift) of the final layer norm.
    norm_out: WeightOnlyLinear,
    proj_out: Linear,
    /// Block and position within it of every layer.
    places: HashMap<LayerId, (usize, usize)>,
}

impl Mmdit {
    /// Loads a transformer and its configuration, which is inferred from the weights where there is no file.
    pub(crate) fn load(files: &Component, compat: Compat, dtype: Dtype) -> Result<Self> {
        let weights = Weights::open(&files.weights)?;
        let config = match (&files.config, files.naming) {
            (Some(path), _) => MmditConfig::read(path)?,
            (None, Naming::Original) => MmditConfig::infer(&weights, files.prefix)?,
            (None, Naming::Diffusers) => MmditConfig::sd3_medium(),
        };
        let layout = layout(files, config.num_layers);
        let loader = Loader::with_layout(&weights, layout).with_dtype(dtype);
        let model = Self::from_loader(&loader, config, compat)?;
        loader.finish()?;
        Ok(model)
    }

    pub(super) fn from_loader(loader: &Loader<'_>, config: MmditConfig, compat: Compat) -> Result<Self> {
        let width = config.width();
        let velocity = config.patch_size.pow(2) * config.velocity_channels();
        let weight_only = |name: &str, input: usize, output: usize| {
            WeightOnlyLinear::load(&loader.scope(name), name.to_owned(), [output, input])
        };
        let out = loader.scope("proj_out");
        let proj_out = Linear {
            weight: out.tensor("weight", &[velocity, width]),
            bias: Some(out.tensor("bias", &[velocity])),
        };
        let block = |index| {
            Block::load(&loader.scope(&format!("transformer_blocks.{index}")), index, &config, compat)
        };
        let blocks: Vec<Block> = (0..config.num_layers).map(block).collect();
        let place = |(b, block): (usize, &Block)| {
            let layers = block.layers().enumerate();
            layers.map(|(l, layer)| (layer.spec.id.clone(), (b, l))).collect::<Vec<_>>()
        };
        Ok(Self {
            patch_embed: PatchEmbed::load(&loader.scope("pos_embed"), &config)?,
            time_text_embed: TimeTextEmbed::load(&loader.scope("time_text_embed"), &config, compat),
            context_embedder: weight_only("context_embedder", config.joint_attention_dim, width),
            norm_out: weight_only("norm_out.linear", width, 2 * width),
            proj_out,
            dtype: loader.dtype(),
            places: blocks.iter().enumerate().flat_map(place).collect(),
            blocks,
            config,
        })
    }

    /// The sizes.
    pub(crate) fn config(&self) -> &MmditConfig {
        &self.config
    }

    /// Element type of all weights and of what is computed with them.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The blocks and their quantizable layers as data.
    pub(crate) fn block_specs(&self) -> Vec<BlockSpec> {
        self.blocks.iter().map(Block::spec).collect()
    }

    /// The linear layers whose input is never quantized, in the order of the forward pass.
    fn weight_only(&self) -> impl Iterator<Item = &WeightOnlyLinear> {
        let embeds = [&self.context_embedder].into_iter().chain(self.time_text_embed.weight_only());
        embeds.chain(self.blocks.iter().flat_map(Block::weight_only)).chain([&self.norm_out])
    }

    /// Those layers as data.
    pub(crate) fn weight_only_specs(&self) -> Vec<WeightOnlySpec> {
        self.weight_only().map(|layer| layer.spec.clone()).collect()
    }

    /// The tensors of the files that this was loaded from, by diffusers' names.
    pub(crate) fn stored(&self, files: &Component) -> Result<BTreeMap<String, StoredTensor>> {
        Ok(files.open()?.stored(&layout(files, self.config.num_layers)))
    }

    /// diffusers' names of the quantizable layers, and of those whose input is never quantized.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (LayerId, String)> {
        let layers = self.blocks.iter().flat_map(Block::layers).map(|l| (&l.spec.id, &l.module));
        let weight_only = self.weight_only().map(|l| (&l.spec.id, &l.module));
        layers.chain(weight_only).map(|(id, module)| (id.clone(), module.clone()))
    }

    /// What the first block sees; `x` is `[batch, h, w, channels]`. Timesteps become sinusoids in f32, which are rounded to
    /// the model's type, as in diffusers.
    pub(crate) fn embed(
        &self,
        x: &Array,
        timesteps: &[f32],
        conditioning: &Conditioning,
        tap: &mut dyn Tap,
    ) -> Result<BlockIo> {
        let cast = |array: &Array| array.as_dtype(self.dtype);
        let hidden = self.patch_embed.forward(&cast(x)?)?;
        let tokens = &conditioning.tokens;
        let width = self.config.joint_attention_dim as i32;
        if tokens.ndim() != 3 || tokens.dim(0) != x.dim(0) || tokens.dim(2) != width {
            return Err(Error::Shape {
                what: "text tokens".into(),
                expected: format!("[{}, tokens, {width}]", x.dim(0)),
                found: tokens.shape().to_vec(),
            });
        }
        if timesteps.len() != x.dim(0) as usize {
            return Err(Error::Shape {
                what: "timesteps".into(),
                expected: format!("[{}], one for each row of the batch", x.dim(0)),
                found: vec![timesteps.len() as i32],
            });
        }
        Ok(BlockIo {
            hidden,
            context: Some(self.context_embedder.forward(&cast(tokens)?, tap)?),
            temb: self.time_text_embed.forward(timesteps, &cast(&conditioning.pooled)?, tap)?,
            timesteps: timesteps.to_vec(),
        })
    }

    /// One block; `index` counts from 0.
    pub(crate) fn block_forward(&self, index: usize, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo> {
        let block = self.blocks.get(index).ok_or_else(|| Error::Unsupported {
            what: format!("there is no block {index}; the transformer has {}", self.blocks.len()),
        })?;
        block.forward(io, tap)
    }

    /// From the last block's image tokens to a velocity, `[batch, h, w, channels]`, in the model's type; `latent` is (h, w).
    pub(crate) fn unembed(&self, io: &BlockIo, latent: (usize, usize), tap: &mut dyn Tap) -> Result<Array> {
        let [scale, shift] = halves(&self.norm_out.forward(&silu(&io.temb)?, tap)?)?;
        let tokens = self.proj_out.forward(&layer_norm_modulate(&io.hidden, &shift, &scale, EPS)?)?;
        let (p, c) = (self.config.patch_size as i32, self.config.velocity_channels() as i32);
        let (h, w) = (latent.0 as i32, latent.1 as i32);
        let patches = tokens.reshape(&[-1, h / p, w / p, p, p, c])?.transpose_axes(&[0, 1, 3, 2, 4, 5])?;
        Ok(patches.reshape(&[-1, h, w, c])?)
    }

    /// The weight of a layer, `[out_features, in_features]`.
    pub(crate) fn weight(&self, id: &LayerId) -> Result<Array> {
        let place = self.places.get(id).and_then(|&(block, layer)| self.blocks[block].layers().nth(layer));
        let weight_only = || self.weight_only().find(|l| l.spec.id == *id).map(|l| &l.weight);
        place.map(|layer| &layer.weight).or_else(weight_only).cloned().ok_or_else(|| unknown(id))
    }

    /// Replaces the weight of a layer by one of the same shape.
    pub(crate) fn set_weight(&mut self, id: &LayerId, weight: Array) -> Result<()> {
        let &(block, layer) = self.places.get(id).ok_or_else(|| unknown(id))?;
        let layer: &mut TappedLinear =
            self.blocks[block].layers_mut().nth(layer).ok_or_else(|| unknown(id))?;
        if weight.shape() != layer.weight.shape() {
            return Err(Error::Shape {
                what: format!("weight of layer `{id}`"),
                expected: format!("{:?}", layer.weight.shape()),
                found: weight.shape().to_vec(),
            });
        }
        layer.weight = if weight.dtype() == self.dtype { weight } else { weight.as_dtype(self.dtype)? };
        Ok(())
    }
}

/// How the files name the tensors of a transformer of `blocks` blocks.
fn layout(files: &Component, blocks: usize) -> Layout {
    match files.naming {
        Naming::Diffusers => Layout::prefixed(files.prefix),
        Naming::Original => names::original(files.prefix, blocks),
    }
}

fn unknown(id: &LayerId) -> Error {
    Error::Unsupported { what: format!("the model has no quantizable layer `{id}`") }
}
