//! The multimodal diffusion transformer of Stable Diffusion 3 and 3.5.
//!
//! Follows diffusers (huggingface/diffusers@58eb52c080, `models/transformers/transformer_sd3.py`,
//! `models/attention.py::JointTransformerBlock`, `models/normalization.py`, `models/embeddings.py`); the paper is
//! arXiv 2403.03206. Tensors carry diffusers' names whatever the file's layout is ([`names`]).

mod attention;
mod block;
mod compat;
mod config;
mod embed;
mod model;
mod names;
mod weight_only;

#[cfg(test)]
mod tests;

pub(crate) use compat::Compat;
pub(crate) use config::MmditConfig;
pub(crate) use model::Mmdit;
pub(crate) use names::original as original_layout;
