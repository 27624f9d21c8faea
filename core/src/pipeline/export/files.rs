//! Safetensors files, and the folder around them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::artifacts::{atomic_write_bytes, write_json};
use crate::{Checkpoint, Companion, Companions, Error, Result, StoredTensor};

/// What [`Error::Malformed`] calls the files.
const KIND: &str = "safetensors file";

/// What loaders look for: `pt` is what transformers and diffusers expect, `mlx` what MLX writes.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, StoredTensor>,
    framework: &str,
) -> Result<()> {
    let malformed = |e: safetensors::SafeTensorError| Error::malformed(KIND, path, e);
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(key, t)| TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map(|view| (key.as_str(), view)))
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    let metadata = HashMap::from([("format".to_owned(), framework.to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(malformed)?;
    atomic_write_bytes(path, &bytes)
}

/// All tensors of a file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is no safetensors file.
pub(in crate::pipeline) fn read_tensors(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::malformed(KIND, path, e))?;
    let stored = |(key, view): (String, TensorView<'_>)| {
        let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (key, StoredTensor { dtype, shape, bytes })
    };
    Ok(file.tensors().into_iter().map(stored).collect())
}

/// The whole model in diffusers' layout.
pub(super) fn write_pipeline(
    checkpoint: &Checkpoint,
    companions: &Companions,
    out: &Path,
) -> Result<PathBuf> {
    write_companions(companions, out)?;
    let weights = out.join(checkpoint.component).join("diffusion_pytorch_model.safetensors");
    write_tensors(&weights, &checkpoint.tensors, "pt")?;
    Ok(weights)
}

/// The files around the transformer's.
pub(super) fn write_companions(companions: &Companions, out: &Path) -> Result<()> {
    for (path, companion) in &companions.files {
        let target = out.join(path);
        match companion {
            Companion::Json(document) => write_json(&target, document)?,
            Companion::Tensors(tensors) => write_tensors(&target, tensors, "pt")?,
            Companion::Copy(source) => {
                if let Some(folder) = target.parent() {
                    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
                }
                // Through links: a repository in Hugging Face's cache is made of them.
                fs::copy(source, &target).map_err(Error::io("copy to", &target))?;
            }
        }
    }
    Ok(())
}
