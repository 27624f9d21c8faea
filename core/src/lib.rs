//! The contract and the engine of taq, which quantizes diffusion transformers after training.
//!
//! This crate knows no model and no algorithm. It defines what a plugin is (five traits), how a forward pass
//! is watched or changed ([`Tap`]), the documents that travel between stages, the folder a run leaves behind,
//! the only place where a quantization formula stands ([`quant`]), and the stages themselves ([`pipeline`]).
//!
//! | trait | one sentence |
//! |---|---|
//! | [`Model`] | runs a diffusion transformer whole or block by block, every linear layer through a tap |
//! | [`Sampler`] | turns noise into a latent along a schedule of sigmas |
//! | [`Observer`] | finds the range of what a layer sees |
//! | [`BitPolicy`] | decides from statistics how many bits each layer gets at each timestep |
//! | [`Rounder`] | chooses the integers of a block's weights |
//!
//! Tensors are [`mlx_rs::Array`]s. They are `Send` but not `Sync`: a model is driven from one thread.

pub mod artifacts;
mod checkpoint;
mod choose_layers;
mod context;
mod error;
pub mod evaluator;
pub mod image;
mod layer;
pub mod manifest;
pub mod metrics;
mod model;
pub mod native;
pub mod noise;
mod observer;
pub mod pipeline;
pub mod plan;
mod policy;
pub mod quant;
pub mod registry;
mod rounder;
mod rows;
mod sampler;
pub mod stats;
mod tap;
pub mod wasm;

pub use checkpoint::{Arrangement, Checkpoint, Companion, Companions, Original, StoredTensor};
pub use choose_layers::choose_layers;
pub use context::{Cancel, Context, Progress, Quiet};
pub use error::{Error, Result, WeightIssue};
pub use layer::{BlockId, BlockSpec, LayerId, LayerSpec, ModelSpec, Role, Stream, WeightOnlySpec};
pub use model::{BlockIo, Conditioning, Model, ModelDefaults};
pub use observer::{ObservationPoint, ObservedBatch, ObservedInput, Observer};
pub use policy::{
    BitPolicy, LayerColumns, LayerPlan, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, ScaleSource,
    Sensitivity, Timestep,
};
pub use rounder::{
    Batch, BlockJob, LOSS_STRIDE, LayerGradients, LayerJob, LearnedInput, Reconstruction, RoundedBlock,
    RoundedLayer, Rounder,
};
pub use sampler::{Sampler, Schedule, StepAt};
pub use tap::{Identity, LinearCall, Tap, WeightOnlyCall};

// For the tests of bit policies: requests with plausible statistics, and a harness.
pub use taq_policy::testing;

// For `register!` and for plugin authors: the crates whose types stand in this crate's signatures.
pub use {inventory, mlx_rs, safetensors, schemars, serde, serde_json};
