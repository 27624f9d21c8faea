//! Stable Diffusion 3 and 3.5 (MMDiT), with CLIP-L, CLIP-G, T5 and the VAE.

mod mmdit;
mod ops;
mod source;
mod text;
mod vae;
mod weights;
