//! Safetensors files, and the folder around them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;

use crate::artifacts::atomic_write_bytes;
use crate::{Checkpoint, Error, Result, StoredTensor};

/// What loaders look for: `pt` is what transformers and diffusers expect, `mlx` what MLX writes.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, StoredTensor>,
    framework: &str,
) -> Result<()> {
    let malformed = |e: safetensors::SafeTensorError| Error::malformed("safetensors file", path, e);
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(key, t)| TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map(|view| (key.as_str(), view)))
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    let metadata = HashMap::from([("format".to_owned(), framework.to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(malformed)?;
    atomic_write_bytes(path, &bytes)
}

/// The whole model, the transformer's weights in one file in place of its own.
pub(super) fn write_pipeline(checkpoint: &Checkpoint, out: &Path) -> Result<PathBuf> {
    let transformer = checkpoint.folder.join(checkpoint.component);
    let keep = |file: &Path| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        let replaced = weights && file.parent() == Some(&transformer);
        !(replaced || name.starts_with('.'))
    };
    copy(&checkpoint.folder, out, &keep)?;
    let weights = out.join(checkpoint.component).join("diffusion_pytorch_model.safetensors");
    write_tensors(&weights, &checkpoint.tensors, "pt")?;
    Ok(weights)
}

fn copy(from: &Path, to: &Path, keep: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io("create", to))?;
    for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
        let entry = entry.map_err(Error::io("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if !keep(&source) {
            continue;
        }
        // Through links: a repository in Hugging Face's cache is made of them.
        if source.is_dir() {
            copy(&source, &target, keep)?;
        } else {
            fs::copy(&source, &target).map_err(Error::io("write", &target))?;
        }
    }
    Ok(())
}
