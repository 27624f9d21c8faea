//! Stability AI's names of the transformer's tensors in terms of diffusers'.
//!
//! Follows `scripts/convert_sd3_to_diffusers.py` (huggingface/diffusers@58eb52c080). q, k and v are one matrix in
//! the original layout. Where diffusers modulates with (scale, shift), the original has (shift, scale): the final
//! layer, and the text stream of the last block; elsewhere the order is the same.

use crate::models::sd3::weights::{Layout, Part, Rule};

/// Modules by diffusers' name, the original's name, and which part of the original's tensor.
const RULES: &[(&str, &str, Part)] = &[
    ("pos_embed.pos_embed", "pos_embed", Part::Whole),
    ("pos_embed.proj", "x_embedder.proj", Part::Whole),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0", Part::Whole),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2", Part::Whole),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0", Part::Whole),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2", Part::Whole),
    ("context_embedder", "context_embedder", Part::Whole),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", Part::SwapHalves),
    ("proj_out", "final_layer.linear", Part::Whole),
    ("transformer_blocks.*.norm1.linear", "joint_blocks.*.x_block.adaLN_modulation.1", Part::Whole),
    ("transformer_blocks.*.attn.to_q", "joint_blocks.*.x_block.attn.qkv", THIRDS[0]),
    ("transformer_blocks.*.attn.to_k", "joint_blocks.*.x_block.attn.qkv", THIRDS[1]),
    ("transformer_blocks.*.attn.to_v", "joint_blocks.*.x_block.attn.qkv", THIRDS[2]),
    ("transformer_blocks.*.attn.norm_q", "joint_blocks.*.x_block.attn.ln_q", Part::Whole),
    ("transformer_blocks.*.attn.norm_k", "joint_blocks.*.x_block.attn.ln_k", Part::Whole),
    ("transformer_blocks.*.attn.to_out.0", "joint_blocks.*.x_block.attn.proj", Part::Whole),
    ("transformer_blocks.*.attn2.to_q", "joint_blocks.*.x_block.attn2.qkv", THIRDS[0]),
    ("transformer_blocks.*.attn2.to_k", "joint_blocks.*.x_block.attn2.qkv", THIRDS[1]),
    ("transformer_blocks.*.attn2.to_v", "joint_blocks.*.x_block.attn2.qkv", THIRDS[2]),
    ("transformer_blocks.*.attn2.norm_q", "joint_blocks.*.x_block.attn2.ln_q", Part::Whole),
    ("transformer_blocks.*.attn2.norm_k", "joint_blocks.*.x_block.attn2.ln_k", Part::Whole),
    ("transformer_blocks.*.attn2.to_out.0", "joint_blocks.*.x_block.attn2.proj", Part::Whole),
    ("transformer_blocks.*.ff.net.0.proj", "joint_blocks.*.x_block.mlp.fc1", Part::Whole),
    ("transformer_blocks.*.ff.net.2", "joint_blocks.*.x_block.mlp.fc2", Part::Whole),
    (
        "transformer_blocks.*.norm1_context.linear",
        "joint_blocks.*.context_block.adaLN_modulation.1",
        Part::Whole,
    ),
    ("transformer_blocks.*.attn.add_q_proj", "joint_blocks.*.context_block.attn.qkv", THIRDS[0]),
    ("transformer_blocks.*.attn.add_k_proj", "joint_blocks.*.context_block.attn.qkv", THIRDS[1]),
    ("transformer_blocks.*.attn.add_v_proj", "joint_blocks.*.context_block.attn.qkv", THIRDS[2]),
    ("transformer_blocks.*.attn.norm_added_q", "joint_blocks.*.context_block.attn.ln_q", Part::Whole),
    ("transformer_blocks.*.attn.norm_added_k", "joint_blocks.*.context_block.attn.ln_k", Part::Whole),
    ("transformer_blocks.*.attn.to_add_out", "joint_blocks.*.context_block.attn.proj", Part::Whole),
    ("transformer_blocks.*.ff_context.net.0.proj", "joint_blocks.*.context_block.mlp.fc1", Part::Whole),
    ("transformer_blocks.*.ff_context.net.2", "joint_blocks.*.context_block.mlp.fc2", Part::Whole),
];

/// q, k and v of a stacked matrix.
const THIRDS: [Part; 3] =
    [Part::Rows { index: 0, of: 3 }, Part::Rows { index: 1, of: 3 }, Part::Rows { index: 2, of: 3 }];

/// The original layout of a transformer of `blocks` blocks, behind `prefix`.
pub(crate) fn original(prefix: &'static str, blocks: usize) -> Layout {
    let last = blocks.saturating_sub(1);
    let last_text = Rule::new(
        format!("transformer_blocks.{last}.norm1_context.linear"),
        format!("joint_blocks.{last}.context_block.adaLN_modulation.1"),
        Part::SwapHalves,
    );
    let rules = RULES.iter().map(|&(model, file, part)| Rule::new(model, file, part));
    Layout { prefix: prefix.into(), rules: std::iter::once(last_text).chain(rules).collect() }
}
