//! From images to latents.

use mlx_rs::Array;
use taq_core::Result;

use super::VaeConfig;
use super::blocks::{Conv, Downsample, GroupNorm, Middle, Resnet};
use crate::models::sd3::weights::Loader;

/// diffusers' `Encoder`.
pub(super) struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv,
    latent_channels: i32,
}

/// One resolution.
struct Level {
    resnets: Vec<Resnet>,
    /// All but the last level have it.
    downsample: Option<Downsample>,
}

impl Encoder {
    pub(super) fn load(loader: &Loader<'_>, config: &VaeConfig) -> Self {
        let loader = loader.scope("encoder");
        let mut from = config.block_out_channels[0];
        let conv_in = Conv::load(&loader, "conv_in", (config.in_channels, from), 3);
        let mut levels = vec![];
        for (i, &to) in config.block_out_channels.iter().enumerate() {
            let loader = loader.scope(&format!("down_blocks.{i}"));
            let resnets = (0..config.layers_per_block).map(|j| {
                let channels = (if j == 0 { from } else { to }, to);
                Resnet::load(&loader, &format!("resnets.{j}"), channels, config)
            });
            levels.push(Level {
                resnets: resnets.collect(),
                downsample: (i + 1 < config.levels())
                    .then(|| Downsample::load(&loader, "downsamplers.0", to)),
            });
            from = to;
        }
        Self {
            conv_in,
            levels,
            middle: Middle::load(&loader, config),
            norm_out: GroupNorm::load(&loader, "conv_norm_out", from, config),
            conv_out: Conv::load(&loader, "conv_out", (from, 2 * config.latent_channels), 3),
            latent_channels: config.latent_channels as i32,
        }
    }

    /// `[n, H, W, 3]`, −1..1, to the means `[n, h, w, latent_channels]`; the variances go unused.
    pub(super) fn forward(&self, image: &Array) -> Result<Array> {
        let mut x = self.conv_in.forward(image)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(&x)?;
            }
        }
        x = self.conv_out.forward(&self.norm_out.forward_silu(&self.middle.forward(&x)?)?)?;
        Ok(x.split_at_indices(&[self.latent_channels], 3)?.swap_remove(0))
    }
}
