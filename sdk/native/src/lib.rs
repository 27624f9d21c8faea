//! Native plugins for taq: observers, rounders and bit policies as shared libraries, which any taq loads with
//! `--plugin ./libmine.so`.
//!
//! In Rust, implement [`Plugin`] and one of [`LayerRounder`], [`BlockRounder`], [`Observer`] and [`BitPolicy`], and name the
//! type in [`export_plugin!`]. The macro writes what the C ABI asks for, catches panics, and hands events of `tracing` to the
//! host's log. In other languages, `include/taq_plugin.h` is all that is needed; `docs/abi.md` is the reference.
//!
//! Numbers cross as slices in host memory, f32 and row-major; a plugin needs neither MLX nor the compiler that taq was built
//! with.

pub mod abi;
pub mod conformance;
mod context;
mod error;
pub mod export;
pub mod host;
mod info;
mod job;
mod log;
mod plugin;
mod reconstruction;
pub mod view;

pub use context::Context;
pub use error::{Error, Result};
pub use info::{INFO_FORMAT, PluginInfo};
pub use job::{BlockJob, Grid, Layer, LayerJob};
pub use plugin::{
    BitPolicy, BlockRounder, InputRange, LayerRounder, ObservationPoint, ObservedBatch, Observer, Plugin,
    RoundedLayer,
};
pub use reconstruction::{Batch, LayerGradients, LayerValues, Reconstruction};
pub use taq_policy::{self, LayerId, LayerSpec, PolicyPlan, PolicyRequest, Role, Stream};
pub use {schemars, serde, serde_json, tracing};

/// The README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
