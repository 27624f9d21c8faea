//! From latents to images.

use mlx_rs::Array;
use taq_core::Result;

use super::VaeConfig;
use super::blocks::{Conv, GroupNorm, Middle, Resnet, Upsample};
use crate::models::sd3::weights::Loader;

/// diffusers' `Decoder`.
pub(super) struct Decoder {
    conv_in: Conv,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// One resolution.
struct Level {
    resnets: Vec<Resnet>,
    /// All but the last level have it.
    upsample: Option<Upsample>,
}

impl Decoder {
    pub(super) fn load(loader: &Loader<'_>, config: &VaeConfig) -> Self {
        let loader = loader.scope("decoder");
        let mut from = config.deepest();
        let conv_in = Conv::load(&loader, "conv_in", (config.latent_channels, from), 3);
        let mut levels = vec![];
        for (i, &to) in config.block_out_channels.iter().rev().enumerate() {
            let loader = loader.scope(&format!("up_blocks.{i}"));
            let resnets = (0..=config.layers_per_block).map(|j| {
                let channels = (if j == 0 { from } else { to }, to);
                Resnet::load(&loader, &format!("resnets.{j}"), channels, config)
            });
            levels.push(Level {
                resnets: resnets.collect(),
                upsample: (i + 1 < config.levels()).then(|| Upsample::load(&loader, "upsamplers.0", to)),
            });
            from = to;
        }
        Self {
            conv_in,
            middle: Middle::load(&loader, config),
            levels,
            norm_out: GroupNorm::load(&loader, "conv_norm_out", from, config),
            conv_out: Conv::load(&loader, "conv_out", (from, config.in_channels), 3),
        }
    }

    /// `[n, h, w, latent_channels]` to `[n, H, W, 3]`, about −1..1.
    pub(super) fn forward(&self, z: &Array) -> Result<Array> {
        let mut x = self.middle.forward(&self.conv_in.forward(z)?)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(upsample) = &level.upsample {
                x = upsample.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}
