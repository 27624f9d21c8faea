//! Sizes of an autoencoder.

use serde::Deserialize;
use taq_core::{Error, Result};

use crate::models::sd3::source::Component;

/// What [`Error::Malformed`] calls the file.
const KIND: &str = "configuration of an autoencoder";

/// The activation; Stable Diffusion's autoencoders have only this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Activation {
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

/// A level of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum DownBlock {
    #[serde(rename = "DownEncoderBlock2D")]
    Encoder,
}

/// A level of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum UpBlock {
    #[serde(rename = "UpDecoderBlock2D")]
    Decoder,
}

/// The configuration of diffusers' `AutoencoderKL`, with its defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct VaeConfig {
    /// Channels of an image.
    pub(super) in_channels: usize,
    out_channels: usize,
    down_block_types: Vec<DownBlock>,
    up_block_types: Vec<UpBlock>,
    /// Channels of each level, from the image's to the latent's resolution.
    pub(super) block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder level; a decoder level has one more.
    pub(super) layers_per_block: usize,
    /// Read so that others are refused.
    act_fn: Activation,
    /// Channels of a latent.
    pub(super) latent_channels: usize,
    /// Groups of a normalization.
    pub(super) norm_num_groups: usize,
    /// What latents are multiplied with after encoding.
    pub(super) scaling_factor: f32,
    /// What is subtracted from latents before that.
    pub(super) shift_factor: Option<f32>,
    /// Whether the middle has an attention.
    pub(super) mid_block_add_attention: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DownBlock::Encoder],
            up_block_types: vec![UpBlock::Decoder],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

impl VaeConfig {
    /// Stable Diffusion 3's.
    fn sd3() -> Self {
        Self {
            down_block_types: vec![DownBlock::Encoder; 4],
            up_block_types: vec![UpBlock::Decoder; 4],
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 16,
            scaling_factor: 1.5305,
            shift_factor: Some(0.0609),
            use_quant_conv: false,
            use_post_quant_conv: false,
            ..Self::default()
        }
    }

    /// Reads and checks the configuration.
    pub(super) fn read(component: &Component) -> Result<Self> {
        let config = component.read_config(KIND, Self::sd3)?;
        match config.problem() {
            Some(reason) => Err(Error::malformed(KIND, component.config_or_weights(), reason)),
            None => Ok(config),
        }
    }

    fn problem(&self) -> Option<String> {
        let levels = self.levels();
        if levels == 0 || levels != self.down_block_types.len() || levels != self.up_block_types.len() {
            return Some(format!(
                "`block_out_channels` has {levels} levels, `down_block_types` {}, `up_block_types` {}",
                self.down_block_types.len(),
                self.up_block_types.len()
            ));
        }
        if self.in_channels != 3 || self.out_channels != 3 {
            return Some("taq's images have 3 channels".into());
        }
        let sizes = [
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..1 << 16).contains(size)) {
            return Some(format!("`{name}` is {size}"));
        }
        let groups = self.norm_num_groups;
        let bad = self.block_out_channels.iter().find(|&&c| c == 0 || c % groups != 0 || c >= 1 << 16);
        if let Some(channels) = bad {
            return Some(format!("{groups} groups do not divide {channels} channels"));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Some(format!("`scaling_factor` is {}", self.scaling_factor));
        }
        if self.use_quant_conv || self.use_post_quant_conv {
            return Some(
                "`use_quant_conv` or `use_post_quant_conv` is true (their default); Stable Diffusion 3 has neither".into(),
            );
        }
        None
    }

    /// Resolutions; each halves the one before.
    pub(super) fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Channels at the latent's resolution.
    pub(super) fn deepest(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or_default()
    }
}
