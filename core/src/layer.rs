//! Blocks and models as data. Observers, policies and rounders see these and no model's name.

use serde::{Deserialize, Serialize};

pub use taq_policy::{BlockId, LayerId, LayerSpec, Role, Stream};

/// A transformer block: the unit of reconstruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// Unique id.
    pub id: BlockId,
    /// Its quantizable layers, in the order of the forward pass.
    pub layers: Vec<LayerSpec>,
}

/// A linear layer whose weight alone may be quantized: its input, a row for each image or for each token of text, stays as
/// it is. Modulation and embeddings are of this kind: hardly any of the computation, but up to a third of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightOnlySpec {
    /// Unique id.
    pub id: LayerId,
    /// Values of an input row.
    pub in_features: usize,
    /// Values of an output row.
    pub out_features: usize,
}

/// What the engine needs to know of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name for people, such as `emoji-sd3`.
    pub name: String,
    /// Hash of configuration and weights; equal models have equal fingerprints wherever they lie.
    pub fingerprint: String,
    /// The blocks, in the order of the forward pass.
    pub blocks: Vec<BlockSpec>,
    /// Linear layers outside of what a plan covers; may be empty.
    pub weight_only: Vec<WeightOnlySpec>,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Pixels of the image per latent pixel, along one side.
    pub vae_factor: usize,
    /// Height and width of the latent must be multiples of this.
    pub patch_size: usize,
}

impl ModelSpec {
    /// All quantizable layers, in the order of the forward pass.
    pub fn layers(&self) -> impl Iterator<Item = &LayerSpec> {
        self.blocks.iter().flat_map(|b| &b.layers)
    }

    /// Ids and shapes `[out_features, in_features]` of all weights that may be integers: those of [`Self::layers`], then of
    /// [`Self::weight_only`].
    pub fn weights(&self) -> impl Iterator<Item = (&LayerId, [usize; 2])> {
        let layers = self.layers().map(|l| (&l.id, [l.out_features, l.in_features]));
        layers.chain(self.weight_only.iter().map(|l| (&l.id, [l.out_features, l.in_features])))
    }

    /// The layer of this id.
    pub fn layer(&self, id: &LayerId) -> Option<&LayerSpec> {
        self.layers().find(|l| &l.id == id)
    }

    /// The position of the block of this id.
    pub fn block_index(&self, id: &BlockId) -> Option<usize> {
        self.blocks.iter().position(|b| &b.id == id)
    }
}
