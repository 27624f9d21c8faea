//! Reading weights: safetensors files, mapped into memory and checked strictly against what a model asks for.
//!
//! - [`Weights`]: the tensors of one file or of several shards, by name;
//! - [`Loader`]: takes tensors out by the model's names and shapes, and reports everything that did not fit at once;
//! - [`Layout`]: the table that turns the model's names into those of a file of another layout.

mod decode;
mod layout;
mod loader;
mod store;

#[cfg(test)]
mod tests;

pub(crate) use layout::{Layout, Part, Rule};
pub(crate) use loader::Loader;
pub(crate) use store::Weights;
