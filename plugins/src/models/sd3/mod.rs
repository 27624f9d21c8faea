//! Stable Diffusion 3 and 3.5 (MMDiT), with CLIP-L, CLIP-G, T5 and the VAE.

mod export;
mod fingerprint;
mod mmdit;
mod model;
mod ops;
mod precision;
mod source;
#[cfg(test)]
mod testing;
mod text;
mod vae;
mod weights;
