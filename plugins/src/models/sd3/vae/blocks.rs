//! What the encoder and the decoder are made of. All tensors are `[batch, h, w, channels]`, f32.

use mlx_rs::Array;
use taq_core::Result;

use super::VaeConfig;
use super::conv;
use crate::models::sd3::ops::{Linear, attention};
use crate::models::sd3::weights::Loader;

/// What is added to a variance: diffusers' constant for Stable Diffusion's autoencoders.
const EPS: f32 = 1e-6;

/// A 3×3 or 1×1 convolution.
pub(super) struct Conv {
    /// `[out, h, w, in]`.
    weight: Array,
    bias: Array,
}

impl Conv {
    /// Loads a convolution of `kernel`×`kernel`.
    pub(super) fn load(loader: &Loader<'_>, name: &str, channels: (usize, usize), kernel: usize) -> Self {
        let (from, to) = channels;
        Self {
            weight: loader.conv(&format!("{name}.weight"), [to, from, kernel, kernel]),
            bias: loader.tensor(&format!("{name}.bias"), &[to]),
        }
    }

    /// The convolution at the same resolution.
    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        conv::same(x, &self.weight, &self.bias, false)
    }
}

/// Group normalization.
pub(super) struct GroupNorm {
    weight: Array,
    bias: Array,
    groups: usize,
}

impl GroupNorm {
    pub(super) fn load(loader: &Loader<'_>, name: &str, channels: usize, config: &VaeConfig) -> Self {
        Self {
            weight: loader.tensor(&format!("{name}.weight"), &[channels]),
            bias: loader.tensor(&format!("{name}.bias"), &[channels]),
            groups: config.norm_num_groups,
        }
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        self.normalize(x, false)
    }

    /// The normalization, then SiLU.
    pub(super) fn forward_silu(&self, x: &Array) -> Result<Array> {
        self.normalize(x, true)
    }

    fn normalize(&self, x: &Array, silu: bool) -> Result<Array> {
        Ok(mlx_host::group_norm_silu(x, self.groups, &self.weight, &self.bias, EPS, silu)?)
    }
}

/// A residual block.
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    /// Where the channels change.
    shortcut: Option<Conv>,
}

impl Resnet {
    pub(super) fn load(
        loader: &Loader<'_>,
        name: &str,
        channels: (usize, usize),
        config: &VaeConfig,
    ) -> Self {
        let loader = loader.scope(name);
        let (from, to) = channels;
        Self {
            norm1: GroupNorm::load(&loader, "norm1", from, config),
            conv1: Conv::load(&loader, "conv1", (from, to), 3),
            norm2: GroupNorm::load(&loader, "norm2", to, config),
            conv2: Conv::load(&loader, "conv2", (to, to), 3),
            shortcut: (from != to).then(|| Conv::load(&loader, "conv_shortcut", (from, to), 1)),
        }
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        let h = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let h = self.conv2.forward(&self.norm2.forward_silu(&h)?)?;
        match &self.shortcut {
            Some(shortcut) => Ok(shortcut.forward(x)?.add(h)?),
            None => Ok(x.add(h)?),
        }
    }
}

/// Attention of one head over all positions of an image.
struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Attention {
    fn load(loader: &Loader<'_>, name: &str, channels: usize, config: &VaeConfig) -> Self {
        let loader = loader.scope(name);
        let linear = |name: &str| Linear {
            weight: loader.tensor(&format!("{name}.weight"), &[channels, channels]),
            bias: Some(loader.tensor(&format!("{name}.bias"), &[channels])),
        };
        Self {
            norm: GroupNorm::load(&loader, "group_norm", channels, config),
            q: linear("to_q"),
            k: linear("to_k"),
            v: linear("to_v"),
            out: linear("to_out.0"),
        }
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let h = self.norm.forward(x)?.reshape(&[x.dim(0), -1, x.dim(3)])?;
        let h = attention(&self.q.forward(&h)?, &self.k.forward(&h)?, &self.v.forward(&h)?, 1, None)?;
        Ok(x.add(self.out.forward(&h)?.reshape(x.shape())?)?)
    }
}

/// The middle, at the latent's resolution.
pub(super) struct Middle {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

impl Middle {
    pub(super) fn load(loader: &Loader<'_>, config: &VaeConfig) -> Self {
        let loader = loader.scope("mid_block");
        let width = config.deepest();
        Self {
            first: Resnet::load(&loader, "resnets.0", (width, width), config),
            attention: config
                .mid_block_add_attention
                .then(|| Attention::load(&loader, "attentions.0", width, config)),
            second: Resnet::load(&loader, "resnets.1", (width, width), config),
        }
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        let mut x = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x)
    }
}

/// Halves the resolution.
pub(super) struct Downsample(Conv);

impl Downsample {
    pub(super) fn load(loader: &Loader<'_>, name: &str, channels: usize) -> Self {
        Self(Conv::load(&loader.scope(name), "conv", (channels, channels), 3))
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        conv::halving(x, &self.0.weight, &self.0.bias)
    }
}

/// Doubles the resolution: each pixel becomes four, then a convolution.
pub(super) struct Upsample(Conv);

impl Upsample {
    pub(super) fn load(loader: &Loader<'_>, name: &str, channels: usize) -> Self {
        Self(Conv::load(&loader.scope(name), "conv", (channels, channels), 3))
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        conv::same(x, &self.0.weight, &self.0.bias, true)
    }
}
