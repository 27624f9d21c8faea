//! The original layout: one file with the whole model, as Stability AI published Stable Diffusion 3 (`sd3_medium.safetensors`,
//! `sd3_medium_incl_clips.safetensors`) and ComfyUI loads it.
//!
//! Configurations, tokenizers and schedule have no place in such a file; they go into folders beside it, where taq looks for
//! them. Programs that know the model without need only the file.

use std::path::{Path, PathBuf};

use super::files::{write_companions, write_tensors};
use crate::{Checkpoint, Companions, Error, Result};

/// Writes `model.safetensors` and what lies beside it. Returns its path.
pub(super) fn write(checkpoint: Checkpoint, companions: Companions, out: &Path) -> Result<PathBuf> {
    let mut tensors = companions.tensors;
    for (name, original) in &checkpoint.original {
        let tensor = original.assemble(&checkpoint.tensors)?;
        let name = format!("{}{name}", checkpoint.prefix);
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::Unsupported {
                what: format!("two parts of the model have a tensor `{name}`"),
            });
        }
    }
    write_companions(&Companions { files: companions.files, ..Companions::default() }, out)?;
    let weights = out.join("model.safetensors");
    write_tensors(&weights, &tensors, "pt")?;
    Ok(weights)
}
