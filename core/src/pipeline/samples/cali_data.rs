//! `DiT_cali_data.npz` by itself: TaQ-DiT's calibration set as the Python ancestor's first phase writes it, all samples
//! shuffled in one file, with the prompts' embeddings (docs/samples.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use serde_json::{Value, json};

use super::{ImageRecord, RunManifest};
use crate::artifacts::{Document, Npz, file_hash};
use crate::{Conditioning, Error, Model, Result};

const KIND: &str = "calibration data";

/// The open file.
pub(super) struct CaliData {
    path: PathBuf,
    /// `[rows, h, w, channels]`.
    xs: Array,
    /// Row of each (image, step).
    rows: BTreeMap<(usize, usize), usize>,
    /// The prompt of each image.
    prompts: Vec<usize>,
    /// `[prompts, 2, tokens, width]`: with the prompt, and without.
    tokens: Array,
    /// `[prompts, 2, width]`.
    pooled: Array,
}

impl CaliData {
    /// Reads the file. Samples of one timestep are taken as different images, those of one prompt in the order of the file.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the array that is not as expected.
    pub(super) fn open(path: &Path, model: &dyn Model) -> Result<(RunManifest, Self)> {
        let npz = Npz::open(path)?;
        let wrong = |reason: String| Err(Error::malformed(KIND, path, reason));
        let (xs, tokens, pooled) = (npz.array("xs")?, npz.array("cs")?, npz.array("cs_pooled")?);
        let ts: Vec<f32> = npz.read("ts")?.data;
        let of: Vec<usize> = match npz.read::<i32>("prompt_indices") {
            Ok(stored) => stored.data.into_iter().map(|i| usize::try_from(i).unwrap_or(usize::MAX)).collect(),
            Err(_) => {
                let stored = npz.read::<i64>("prompt_indices")?;
                stored.data.into_iter().map(|i| usize::try_from(i).unwrap_or(usize::MAX)).collect()
            }
        };
        let cfg_scale = match npz.scalar::<f32>("cfg_scale") {
            Ok(scale) => scale,
            Err(_) => npz.scalar::<f64>("cfg_scale")? as f32,
        };
        if xs.ndim() != 4 || xs.dim(0) as usize != ts.len() || of.len() != ts.len() || ts.is_empty() {
            return wrong(format!(
                "`xs` has shape {:?} for {} timesteps and {} prompt indices, expected [rows, h, w, channels]",
                xs.shape(),
                ts.len(),
                of.len()
            ));
        }
        if tokens.ndim() != 4 || pooled.ndim() != 3 || tokens.dim(1) != 2 || pooled.dim(1) != 2 {
            return wrong(format!(
                "`cs` and `cs_pooled` have shapes {:?} and {:?}, expected [prompts, 2, tokens, width] and [prompts, 2, width]",
                tokens.shape(),
                pooled.shape()
            ));
        }
        let known = tokens.dim(0).min(pooled.dim(0)) as usize;
        if let Some(index) = of.iter().find(|index| **index >= known) {
            return wrong(format!("`prompt_indices` has {index}, but there are {known} prompts"));
        }
        if let Some(t) = ts.iter().find(|t| !(0.0..=1e4).contains(*t)) {
            return wrong(format!("`ts` has {t}, expected timesteps from 0 to 1000"));
        }
        let mut at: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        ts.iter().enumerate().for_each(|(row, t)| at.entry(t.to_bits()).or_default().push(row));
        let (mut rows, mut sigmas, mut prompts) = (BTreeMap::new(), Vec::new(), Vec::new());
        // Bits of floats that are not negative are in their order: the noisiest first.
        for (step, (bits, mut group)) in at.into_iter().rev().enumerate() {
            group.sort_by_key(|&row| (of[row], row));
            let here: Vec<usize> = group.iter().map(|&row| of[row]).collect();
            if step == 0 {
                prompts = here;
            } else if prompts != here {
                return wrong(format!(
                    "timestep {} has other prompts than the first: {} samples, expected {}",
                    f32::from_bits(bits),
                    here.len(),
                    prompts.len()
                ));
            }
            rows.extend(group.into_iter().enumerate().map(|(image, row)| ((image, step), row)));
            sigmas.push(f32::from_bits(bits) / 1000.0);
        }
        let images = prompts.iter().enumerate().map(|(image_id, prompt)| ImageRecord {
            image_id,
            prompt: format!("prompt {prompt}"),
            seed: image_id as u64,
            cfg_weight: cfg_scale,
            num_steps: sigmas.len(),
            filename: None,
            latent_filename: String::new(),
        });
        let manifest = RunManifest {
            format: RunManifest::FORMAT.to_owned(),
            n_completed: prompts.len(),
            num_images: prompts.len(),
            num_steps: sigmas.len(),
            kept_steps: (0..sigmas.len()).collect(),
            sigmas: sigmas.iter().copied().chain([0.0]).collect(),
            cfg_scale,
            latent_size: (xs.dim(1) as usize, xs.dim(2) as usize),
            model_version: model.spec().name.clone(),
            model_fingerprint: model.spec().fingerprint.clone(),
            seed_base: 0,
            images: images.collect(),
        };
        Ok((manifest, Self { path: path.to_owned(), xs, rows, prompts, tokens, pooled }))
    }

    /// A sample's latent, `[h, w, channels]`.
    pub(super) fn latent(&self, image: usize, step: usize) -> Result<Array> {
        let row = self.rows.get(&(image, step)).ok_or_else(|| {
            Error::malformed(KIND, &self.path, format!("it has no image {image} at step {step}"))
        })?;
        Ok(self.xs.try_index(*row as i32)?)
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For fingerprints: the contents of the file.
    pub(super) fn identity(&self) -> Result<Value> {
        Ok(json!({ "cali_data": file_hash(&self.path)? }))
    }

    /// The embeddings of the first images' prompts, and of the empty prompt.
    pub(super) fn embeddings(&self, images: usize) -> Result<(Conditioning, Conditioning)> {
        let part = |branch: i32| -> Result<Conditioning> {
            Ok(Conditioning {
                tokens: self.tokens.take_axis(Array::from_int(branch), 1)?,
                pooled: self.pooled.take_axis(Array::from_int(branch), 1)?,
            })
        };
        let prompts = &self.prompts[..images.min(self.prompts.len())];
        Ok((part(0)?.rows(prompts)?, part(1)?.rows(&[0])?))
    }
}
