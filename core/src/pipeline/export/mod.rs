//! `export`: rounded weights in the formats of other programs.
//!
//! Grids of activations stay behind except in [`ExportFormat::Packed`], for no other format has them: a program that reads an
//! export computes with inputs in full precision. Two things that a rounder may learn of a layer's input are folded in:
//! columns are divided by their multiplier again, and of a bias by timestep the mean is added.

mod files;
pub(super) mod gguf;
pub(super) mod mlx;
pub(super) mod packed;
mod single_file;

use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::Session;
use super::quantized::ActivationPlan;
use super::round::{WeightsConfig, effective_plan, load_rounded, visit_weight_only};
use crate::{Arrangement, Checkpoint, Companions, Error, LayerId, Result, RoundedLayer, StoredTensor};

pub(super) use files::read_tensors;
pub use packed::{PackedLayer, PackedWeights};

/// A format of other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A folder with `model.safetensors` and `config.json`: integers packed as MLX packs them (`mlx.nn.QuantizedLinear`), the
    /// transformer alone, modules named as in diffusers.
    Mlx,
    /// A folder as `StableDiffusion3Pipeline.save_pretrained` writes it, the weights dequantized.
    Diffusers,
    /// Such a folder whose transformer's integers are packed beside their step sizes, with the grids of its inputs; `load.py` in it
    /// gives the dequantized weights.
    Packed,
    /// `model.safetensors` in the original layout with VAE and CLIP encoders, the weights dequantized, and configurations and
    /// tokenizers in folders beside it.
    SingleFile,
    /// `model.gguf`: the transformer for ComfyUI-GGUF and stable-diffusion.cpp, in ggml's blocks.
    Gguf,
}

/// A type of floating-point numbers in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// 16 bits, IEEE's half precision.
    F16,
    /// 16 bits, the upper half of an f32.
    Bf16,
    /// 32 bits.
    F32,
}

impl FloatType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
        }
    }
}

/// What [`export`] is to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportSettings {
    /// The format.
    pub format: ExportFormat,
    /// The type of the transformer's numbers that are not integers; default: that of the model's own files (in GGUF, f16).
    pub float_type: Option<FloatType>,
}

/// What [`export`] has written.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The transformer's weights.
    pub weights: PathBuf,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of the transformer's weights in the model's own files.
    pub bytes_before: u64,
    /// Layers whose integers were packed.
    pub packed: usize,
    /// Rounded layers that had to be written as floating-point numbers.
    pub dequantized: Vec<LayerId>,
}

/// Writes the rounded weights of the run into the folder `out`, which must not hold anything yet.
///
/// # Errors
/// [`Error::StageMissing`] without rounded weights, [`Error::Stale`] if they are of another model, [`Error::Settings`] if
/// `out` is not empty, [`Error::Unsupported`] if the model has no files to take the rest from, [`Error::NotFinite`] if a number
/// is too large for the type asked for.
pub fn export(session: &Session, settings: &ExportSettings, out: &Path) -> Result<Exported> {
    let occupied = std::fs::read_dir(out).is_ok_and(|mut all| all.next().is_some());
    if occupied || out.is_file() {
        let reason = format!("`{}` is not empty; name a new folder", out.display());
        return Err(Error::settings("export", reason));
    }
    let layers = rounded(session)?;
    let companions = |arrangement| session.model.companions(arrangement);
    // First, so that what is missing is told before anything is read.
    let companions = match settings.format {
        ExportFormat::Mlx | ExportFormat::Gguf => Companions::default(),
        ExportFormat::Diffusers | ExportFormat::Packed => companions(Arrangement::Folder)?,
        ExportFormat::SingleFile => companions(Arrangement::SingleFile)?,
    };
    let mut checkpoint = session.model.checkpoint()?;
    let bytes_before = checkpoint.tensors.values().map(|t| t.bytes.len() as u64).sum();
    let dtype = settings.float_type.map(FloatType::dtype);
    for (id, layer) in &layers {
        fold_bias(&mut checkpoint, id, layer, dtype)?;
    }
    if let Some(dtype) = dtype {
        convert(&mut checkpoint, dtype)?;
    }
    let all = || layers.iter().map(|(id, _)| id.clone()).collect();
    let (weights, packed, dequantized) = match settings.format {
        ExportFormat::Mlx => mlx::write(checkpoint, &layers, out)?,
        ExportFormat::Gguf => gguf::write(&checkpoint, &layers, dtype, out)?,
        ExportFormat::Packed => {
            let weights = packed::write(session, checkpoint, &layers, &companions, out)?;
            (weights, layers.len(), Vec::new())
        }
        ExportFormat::Diffusers | ExportFormat::SingleFile => {
            for (id, layer) in &layers {
                replace_weight(&mut checkpoint, id, layer)?;
            }
            let weights = match settings.format {
                ExportFormat::SingleFile => single_file::write(checkpoint, companions, out)?,
                _ => files::write_pipeline(&checkpoint, &companions, out)?,
            };
            (weights, 0, all())
        }
    };
    let bytes = std::fs::metadata(&weights).map_err(Error::io("read", &weights))?.len();
    Ok(Exported { weights, bytes, bytes_before, packed, dequantized })
}

/// The run's rounded layers in the order of the forward pass, then those whose input is not quantized.
fn rounded(session: &Session) -> Result<Vec<(LayerId, RoundedLayer)>> {
    let (run, spec) = (&session.run, session.model.spec());
    let config = WeightsConfig::needed(run, "export", spec)?;
    let plan = effective_plan(run, "export", spec)?;
    let activations = ActivationPlan::load(run, spec, &plan)?;
    let mut layers = load_rounded(run, &activations, config.blocks(spec))?;
    visit_weight_only(run, spec, &config, &mut |id, rounded| {
        layers.push((id.clone(), rounded));
        Ok(())
    })?;
    Ok(layers)
}

/// The weight for inputs in full precision, `[out_features, in_features]`.
fn plain_weight(layer: &RoundedLayer) -> Vec<f32> {
    let mut values = layer.values();
    if let Some(multiplier) = multiplier(layer) {
        for row in values.chunks_mut(layer.shape[1]) {
            row.iter_mut().zip(multiplier).for_each(|(value, m)| *value /= m);
        }
    }
    values
}

/// What columns are times, if any is.
fn multiplier(layer: &RoundedLayer) -> Option<&[f32]> {
    let multiplier = &layer.learned.as_ref()?.multiplier;
    multiplier.iter().any(|&m| m != 1.0).then_some(multiplier)
}

/// The transformer's floating-point numbers in another type.
fn convert(checkpoint: &mut Checkpoint, dtype: Dtype) -> Result<()> {
    for (name, tensor) in &mut checkpoint.tensors {
        if tensor.dtype != dtype {
            *tensor = tensor.to_dtype(dtype).map_err(|e| match e {
                Error::NotFinite { .. } => Error::NotFinite { what: format!("tensor `{name}` as {dtype:?}") },
                other => other,
            })?;
        }
    }
    Ok(())
}

fn tensor<'a>(checkpoint: &'a mut Checkpoint, key: &str) -> Result<&'a mut StoredTensor> {
    let missing = || Error::Unsupported { what: format!("export: the model's files have no tensor `{key}`") };
    checkpoint.tensors.get_mut(key).ok_or_else(missing)
}

fn replace_weight(checkpoint: &mut Checkpoint, id: &LayerId, layer: &RoundedLayer) -> Result<()> {
    let key = format!("{}.weight", checkpoint.module(id)?);
    let stored = tensor(checkpoint, &key)?;
    *stored = StoredTensor::of_floats(&plain_weight(layer), &layer.shape, stored.dtype)?;
    Ok(())
}

/// Adds the mean of a learned bias, in `dtype` if that is given.
fn fold_bias(
    checkpoint: &mut Checkpoint,
    id: &LayerId,
    layer: &RoundedLayer,
    dtype: Option<Dtype>,
) -> Result<()> {
    let Some(learned) = layer.learned.as_ref().filter(|l| !l.bias.is_empty()) else { return Ok(()) };
    let key = format!("{}.bias", checkpoint.module(id)?);
    let stored = tensor(checkpoint, &key)?;
    let mut bias = stored.floats()?;
    let steps = learned.bias.len() / bias.len().max(1);
    for row in learned.bias.chunks(bias.len()) {
        bias.iter_mut().zip(row).for_each(|(b, more)| *b += more / steps as f32);
    }
    *stored = StoredTensor::of_floats(&bias, &stored.shape.clone(), dtype.unwrap_or(stored.dtype))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safetensors::Dtype;

    use super::*;
    use crate::LearnedInput;
    use crate::quant::Grid;

    #[test]
    fn what_was_learned_of_the_input_is_folded_in() {
        let layer = RoundedLayer {
            grid: Grid::channel(4).unwrap(),
            shape: [1, 2],
            weight_int: vec![3, -4],
            scale: vec![0.5],
            zero_point: vec![1.0],
            learned: Some(LearnedInput {
                scale: vec![1.0, 1.0],
                shift: vec![],
                multiplier: vec![1.0, 2.0],
                bias: vec![1.0, 4.0],
            }),
        };
        // (3 − 1) · 0.5 and (−4 − 1) · 0.5 / 2.
        assert_eq!(plain_weight(&layer), [1.0, -1.25]);
        let tensors: BTreeMap<String, StoredTensor> = [
            ("m.weight".to_owned(), StoredTensor::of_floats(&[9.0, 9.0], &[1, 2], Dtype::F16).unwrap()),
            ("m.bias".to_owned(), StoredTensor::of_floats(&[0.25], &[1], Dtype::F16).unwrap()),
        ]
        .into();
        let id = LayerId::new("l");
        let modules = [(id.clone(), "m".to_owned())].into();
        let mut checkpoint = Checkpoint {
            component: "t",
            config: Default::default(),
            tensors,
            modules,
            original: BTreeMap::new(),
            prefix: "",
        };
        fold_bias(&mut checkpoint, &id, &layer, None).unwrap();
        replace_weight(&mut checkpoint, &id, &layer).unwrap();
        assert_eq!(checkpoint.tensors["m.bias"].floats().unwrap(), [2.75]);
        assert_eq!(checkpoint.tensors["m.weight"].floats().unwrap(), [1.0, -1.25]);
        assert_eq!(checkpoint.tensors["m.weight"].dtype, Dtype::F16);
        assert!(replace_weight(&mut checkpoint, &LayerId::new("other"), &layer).is_err());
        convert(&mut checkpoint, Dtype::F32).unwrap();
        assert_eq!(checkpoint.tensors["m.weight"].dtype, Dtype::F32);
        assert_eq!(checkpoint.tensors["m.weight"].floats().unwrap(), [1.0, -1.25]);
        checkpoint.tensors.insert("big".into(), StoredTensor::of_floats(&[1e6], &[1], Dtype::F32).unwrap());
        let error = convert(&mut checkpoint, Dtype::F16).unwrap_err().to_string();
        assert!(error.contains("tensor `big` as F16"), "{error}");
    }
}
