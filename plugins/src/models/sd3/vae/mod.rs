//! The autoencoder: between images and latents, as diffusers' `AutoencoderKL` computes it
//! (huggingface/diffusers@58eb52c080, `models/autoencoders/{autoencoder_kl,vae}.py`; Rombach et al.,
//! <https://arxiv.org/abs/2112.10752>).

mod blocks;
mod config;
mod conv;
mod decoder;
mod encoder;
mod names;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use mlx_rs::{Array, ops};
use taq_core::{Error, Result, StoredTensor};

use self::config::VaeConfig;
use self::decoder::Decoder;
use self::encoder::Encoder;
use super::source::{Component, Naming};
use super::weights::{Layout, Loader};

/// Image pixels that are computed at a time, if they are of more than one image.
const PIXELS: i32 = 1 << 18;

/// A loaded autoencoder.
pub(crate) struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
}

impl Vae {
    /// Loads configuration and weights.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a configuration that cannot be read or is not that of such an autoencoder;
    /// [`Error::Weights`] with everything that does not fit it.
    pub(crate) fn load(component: &Component) -> Result<Self> {
        let config = VaeConfig::read(component)?;
        let weights = component.open()?;
        let loader = Loader::with_layout(&weights, layout(component, &config));
        let (encoder, decoder) = (Encoder::load(&loader, &config), Decoder::load(&loader, &config));
        loader.finish()?;
        Ok(Self { config, encoder, decoder })
    }

    /// The tensors of the files that this was loaded from, by diffusers' names.
    pub(crate) fn stored(&self, component: &Component) -> Result<BTreeMap<String, StoredTensor>> {
        Ok(component.open()?.stored(&layout(component, &self.config)))
    }

    /// The original's tensors behind `prefix`, byte for byte of diffusers' ones.
    pub(crate) fn original(
        &self,
        tensors: &BTreeMap<String, StoredTensor>,
        prefix: &'static str,
    ) -> Result<BTreeMap<String, StoredTensor>> {
        let originals = names::original(prefix, self.config.levels()).originals(tensors.keys());
        originals.into_iter().map(|(name, original)| Ok((name, original.assemble(tensors)?))).collect()
    }

    /// Channels of a latent.
    pub(crate) fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }

    /// Pixels of the image per latent pixel, along one side.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.config.levels() - 1)
    }

    /// Latents `[n, h, w, channels]`, as the transformer sees them, to images `[n, H, W, 3]` in 0..1, clipped.
    ///
    /// # Errors
    /// [`Error::Shape`] for anything else.
    pub(crate) fn decode(&self, latent: &Array) -> Result<Array> {
        let channels = self.config.latent_channels as i32;
        if latent.ndim() != 4 || latent.dim(3) != channels || latent.shape().contains(&0) {
            let expected = format!("[batch, h, w, {channels}]");
            return Err(Error::Shape { what: "latent".into(), expected, found: latent.shape().to_vec() });
        }
        let factor = self.factor() as i32;
        let pixels = latent.dim(1) * latent.dim(2) * factor * factor;
        batched(latent, pixels, |z| {
            let z = z.divide(scalar(self.config.scaling_factor))?.add(scalar(self.shift()))?;
            let image = self.decoder.forward(&z)?.multiply(scalar(0.5))?.add(scalar(0.5))?;
            Ok(ops::clip(image, (0.0, 1.0))?)
        })
    }

    /// Images `[n, H, W, 3]` in 0..1 to latents (the mean) `[n, h, w, channels]`, as the transformer sees them.
    ///
    /// # Errors
    /// [`Error::Shape`] for anything else; H and W must be multiples of [`Self::factor`].
    pub(crate) fn encode(&self, image: &Array) -> Result<Array> {
        batched(self.checked(image)?, image.dim(1) * image.dim(2), |image| {
            let image = image.multiply(scalar(2.0))?.subtract(scalar(1.0))?;
            let mean = self.encoder.forward(&image)?;
            Ok(mean.subtract(scalar(self.shift()))?.multiply(scalar(self.config.scaling_factor))?)
        })
    }

    fn checked<'a>(&self, image: &'a Array) -> Result<&'a Array> {
        let factor = self.factor() as i32;
        let fits = image.ndim() == 4
            && image.dim(3) == self.config.in_channels as i32
            && !image.shape().contains(&0)
            && image.dim(1) % factor == 0
            && image.dim(2) % factor == 0;
        if fits {
            return Ok(image);
        }
        let expected = format!("[batch, a multiple of {factor}, a multiple of {factor}, 3]");
        Err(Error::Shape { what: "image".into(), expected, found: image.shape().to_vec() })
    }

    fn shift(&self) -> f32 {
        self.config.shift_factor.unwrap_or(0.0)
    }
}

/// How the files name an autoencoder's tensors.
fn layout(component: &Component, config: &VaeConfig) -> Layout {
    match component.naming {
        Naming::Diffusers => Layout::prefixed(component.prefix),
        Naming::Original => names::original(component.prefix, config.levels()),
    }
}

/// Applies `f` to a few images at a time, so that memory does not grow with their number.
fn batched(x: &Array, pixels: i32, f: impl Fn(&Array) -> Result<Array>) -> Result<Array> {
    let (images, at_once) = (x.dim(0), (PIXELS / pixels).max(1));
    if images <= at_once {
        return f(x);
    }
    let cuts: Vec<i32> = (1..).map(|i| i * at_once).take_while(|&cut| cut < images).collect();
    let parts = x.split_at_indices(&cuts, 0)?.into_iter().map(|x| {
        let y = f(&x)?;
        y.eval()?;
        Ok(y)
    });
    Ok(ops::concatenate(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}

fn scalar(x: f32) -> Array {
    Array::from_f32(x)
}
