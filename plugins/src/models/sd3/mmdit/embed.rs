//! What enters the first block: patches with positions, timesteps with pooled text, text tokens.

use half::f16;
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use taq_core::{Error, Result, Tap};

use super::weight_only::WeightOnlyLinear;
use super::{Compat, MmditConfig};
use crate::models::sd3::ops::{self, Linear};
use crate::models::sd3::weights::Loader;

/// Channels of the sinusoidal timestep embedding.
const FREQUENCY_CHANNELS: usize = 256;

/// Longest period of the sinusoids, over 2π.
const MAX_PERIOD: f32 = 10_000.0;

/// Latents to image tokens: a linear map of each patch plus the embedding of its position.
#[derive(Debug)]
pub(super) struct PatchEmbed {
    patch: usize,
    channels: usize,
    /// Side of the table, in patches.
    side: usize,
    /// `[width, patch · patch · channels]`: the convolution of kernel and stride `patch`, as a linear map.
    proj: Linear,
    /// `[side, side, width]`.
    table: Array,
}

impl PatchEmbed {
    pub(super) fn load(loader: &Loader<'_>, config: &MmditConfig) -> Result<Self> {
        let (patch, channels, side) = (config.patch_size, config.in_channels, config.pos_embed_max_size);
        let width = config.width();
        let weight = loader.conv("proj.weight", [width, channels, patch, patch]);
        let weight = weight.reshape(&[width as i32, (patch * patch * channels) as i32])?;
        let bias = Some(loader.tensor("proj.bias", &[width]));
        let table = loader.tensor("pos_embed", &[1, side * side, width]);
        let table = table.reshape(&[side as i32, side as i32, width as i32])?;
        Ok(Self { patch, channels, side, proj: Linear { weight, bias }, table })
    }

    /// `[batch, h, w, channels]` to `[batch, (h / patch) · (w / patch), width]`. The positions are the middle of
    /// the table.
    pub(super) fn forward(&self, latent: &Array) -> Result<Array> {
        let p = self.patch as i32;
        let &[b, h, w, c] = latent.shape() else { return Err(self.refuse(latent)) };
        let (rows, columns) = (h / p, w / p);
        let side = self.side as i32;
        if c != self.channels as i32 || [h, w].iter().any(|d| d % p != 0 || !(p..=side * p).contains(d)) {
            return Err(self.refuse(latent));
        }
        let patches = latent.reshape(&[b, rows, p, columns, p, c])?.transpose_axes(&[0, 1, 3, 2, 4, 5])?;
        let tokens = self.proj.forward(&patches.reshape(&[b, rows * columns, p * p * c])?)?;
        let (top, left) = ((side - rows) / 2, (side - columns) / 2);
        let positions = self.table.try_index((top..top + rows, left..left + columns, ..))?;
        Ok(tokens.add(positions.reshape(&[1, rows * columns, -1])?)?)
    }

    fn refuse(&self, latent: &Array) -> Error {
        let (p, most) = (self.patch, self.side * self.patch);
        Error::Shape {
            what: "latent".into(),
            expected: format!(
                "[batch, h, w, {}] with h and w multiples of {p} from {p} to {most}",
                self.channels
            ),
            found: latent.shape().to_vec(),
        }
    }
}

/// Two linear layers with SiLU between them.
#[derive(Debug)]
struct Embedder {
    linear_1: WeightOnlyLinear,
    linear_2: WeightOnlyLinear,
}

impl Embedder {
    fn load(loader: &Loader<'_>, id: &str, input: usize, width: usize) -> Self {
        let linear = |name: &str, input: usize| {
            WeightOnlyLinear::load(&loader.scope(name), format!("{id}.{name}"), [width, input])
        };
        Self { linear_1: linear("linear_1", input), linear_2: linear("linear_2", width) }
    }

    fn forward(&self, x: &Array, tap: &mut dyn Tap) -> Result<Array> {
        let inner = ops::silu(&self.linear_1.forward(x, tap)?)?;
        self.linear_2.forward(&inner, tap)
    }
}

/// Timestep and pooled text to the vector that modulates every block.
#[derive(Debug)]
pub(super) struct TimeTextEmbed {
    timestep: Embedder,
    text: Embedder,
    pooled: usize,
    half_timesteps: bool,
}

impl TimeTextEmbed {
    pub(super) fn load(loader: &Loader<'_>, config: &MmditConfig, compat: Compat) -> Self {
        let (width, pooled) = (config.width(), config.pooled_projection_dim);
        Self {
            timestep: Embedder::load(
                &loader.scope("timestep_embedder"),
                "timestep_embedder",
                FREQUENCY_CHANNELS,
                width,
            ),
            text: Embedder::load(&loader.scope("text_embedder"), "text_embedder", pooled, width),
            pooled,
            half_timesteps: compat.half_timesteps(),
        }
    }

    /// The layers, in the order of the forward pass.
    pub(super) fn weight_only(&self) -> [&WeightOnlyLinear; 4] {
        let Self { timestep, text, .. } = self;
        [&timestep.linear_1, &timestep.linear_2, &text.linear_1, &text.linear_2]
    }

    /// One timestep (1000 σ) and one row of `pooled`, `[batch, pooled width]`, for each row of the batch:
    /// `[batch, width]`, in the type of `pooled`.
    pub(super) fn forward(&self, timesteps: &[f32], pooled: &Array, tap: &mut dyn Tap) -> Result<Array> {
        if pooled.shape() != [timesteps.len() as i32, self.pooled as i32] {
            return Err(Error::Shape {
                what: "pooled text embedding".into(),
                expected: format!("[{}, {}]", timesteps.len(), self.pooled),
                found: pooled.shape().to_vec(),
            });
        }
        let waves: Vec<f32> = timesteps
            .iter()
            .flat_map(|&t| if self.half_timesteps { sinusoid_f16(t) } else { sinusoid(t) })
            .collect();
        let waves = Array::from_slice(&waves, &[timesteps.len() as i32, FREQUENCY_CHANNELS as i32]);
        let waves = waves.as_dtype(pooled.dtype())?;
        Ok(self.timestep.forward(&waves, tap)?.add(self.text.forward(pooled, tap)?)?)
    }
}

/// `exp(−ln(10000) · i / 128)` for each i below 128.
fn frequencies() -> impl Iterator<Item = f32> + Clone {
    let half = FREQUENCY_CHANNELS / 2;
    (0..half).map(move |i| (-MAX_PERIOD.ln() * i as f32 / half as f32).exp())
}

/// The cosines of `t` at all frequencies, then the sines.
pub(super) fn sinusoid(t: f32) -> Vec<f32> {
    let angles = frequencies().map(|f| t * f);
    angles.clone().map(f32::cos).chain(angles.map(f32::sin)).collect()
}

/// [`sinusoid`] with timestep, frequencies, angles and results each rounded to half precision.
pub(super) fn sinusoid_f16(t: f32) -> Vec<f32> {
    let round = |x: f32| f16::from_f32(x).to_f32();
    let t = round(t);
    let angles = frequencies().map(move |f| round(t * round(f)));
    angles.clone().map(f32::cos).chain(angles.map(f32::sin)).map(round).collect()
}

/// The two halves of the last axis.
pub(super) fn halves(x: &Array) -> Result<[Array; 2]> {
    let middle = x.dim(-1) / 2;
    Ok([x.try_index((.., ..middle))?, x.try_index((.., middle..))?])
}
