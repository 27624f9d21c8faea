//! Stability AI's names of the autoencoder's tensors in terms of diffusers'.
//!
//! Follows `convert_ldm_vae_checkpoint` (huggingface/diffusers@58eb52c080, `loaders/single_file_utils.py`). The
//! original counts the decoder's levels from the image, and its attention's linear layers are 1×1 convolutions.

use crate::models::sd3::weights::{Layout, Part, Rule};

/// Modules by diffusers' name and by the original's; a level's number is the same.
const RULES: &[(&str, &str, Part)] = &[
    ("encoder.down_blocks.*.resnets.*.conv_shortcut", "encoder.down.*.block.*.nin_shortcut", Part::Whole),
    ("encoder.down_blocks.*.resnets.*", "encoder.down.*.block.*", Part::Whole),
    ("encoder.down_blocks.*.downsamplers.0", "encoder.down.*.downsample", Part::Whole),
];

/// Modules of the encoder and of the decoder.
const BOTH: &[(&str, &str, Part)] = &[
    ("mid_block.resnets.0", "mid.block_1", Part::Whole),
    ("mid_block.resnets.1", "mid.block_2", Part::Whole),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm", Part::Whole),
    ("mid_block.attentions.0.to_q", "mid.attn_1.q", Part::Pointwise),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k", Part::Pointwise),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v", Part::Pointwise),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out", Part::Pointwise),
    ("conv_norm_out", "norm_out", Part::Whole),
];

/// The original layout of an autoencoder of `levels` levels, behind `prefix`.
pub(super) fn original(prefix: &'static str, levels: usize) -> Layout {
    let mut rules: Vec<Rule> =
        RULES.iter().map(|&(model, file, part)| Rule::new(model, file, part)).collect();
    for side in ["encoder", "decoder"] {
        let both = BOTH.iter();
        rules.extend(both.map(|(model, file, part)| {
            Rule::new(format!("{side}.{model}"), format!("{side}.{file}"), *part)
        }));
    }
    for (level, from_image) in (0..levels).rev().enumerate() {
        let (model, file) = (format!("decoder.up_blocks.{level}"), format!("decoder.up.{from_image}"));
        for (module, original) in [
            ("resnets.*.conv_shortcut", "block.*.nin_shortcut"),
            ("resnets.*", "block.*"),
            ("upsamplers.0", "upsample"),
        ] {
            rules.push(Rule::new(format!("{model}.{module}"), format!("{file}.{original}"), Part::Whole));
        }
    }
    Layout { prefix: prefix.into(), rules }
}
