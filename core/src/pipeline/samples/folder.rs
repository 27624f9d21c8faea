//! Calibration samples as taq's Python ancestor keeps them (sean-seowon-yi/time-aware-MLXSD-quantization): a folder of npz
//! files, one for each image and step, with or without a manifest (docs/samples.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use serde_json::{Value, json};

use super::{ImageRecord, RunManifest};
use crate::artifacts::{Document, Element, Npz, RunFolder, file_hash, read_json};
use crate::{Conditioning, Error, Model, Result};

const KIND: &str = "calibration sample";

/// What each field may be called: by its name, or by its place where numpy was given no names.
const LATENT: [&str; 3] = ["x", "latent", "arr_0"];
const TIMESTEP: [&str; 2] = ["timestep", "arr_1"];
const SIGMA: [&str; 2] = ["sigma", "arr_2"];
const STEP: [&str; 2] = ["step_index", "arr_3"];
const IMAGE: [&str; 2] = ["image_id", "arr_4"];
const FINAL: [&str; 2] = ["is_final", "arr_5"];

/// Where the samples of a folder lie.
pub(super) struct SampleFolder {
    files: BTreeMap<(usize, usize), PathBuf>,
    /// Of each image, where its prompt is not known but its embedding is.
    embeddings: Option<Vec<PathBuf>>,
    manifest: Option<PathBuf>,
}

/// The folder's manifest, if it is one of the ancestor's: JSON without a `format`.
pub(super) fn ancestors_manifest(path: &Path) -> Option<Value> {
    let manifest: Value = read_json(path, RunManifest::KIND).ok()?;
    let known = ["images", "n_completed", "sample_files", "num_steps"];
    (manifest.get("format").is_none() && known.iter().any(|key| manifest.get(key).is_some()))
        .then_some(manifest)
}

/// The files that hold samples: those that the manifest lists, else those of `samples/`, else those of the folder itself.
pub(super) fn sample_files(run: &RunFolder, manifest: Option<&Value>) -> Result<Vec<PathBuf>> {
    if let Some(listed) = manifest.and_then(|m| m.get("sample_files")) {
        let wrong = || {
            let reason = "`sample_files`: expected a list of file names below the folder";
            Error::malformed(RunManifest::KIND, run.manifest(), reason)
        };
        let files = listed.as_array().ok_or_else(wrong)?.iter();
        return files
            .map(|file| {
                let file = Path::new(file.as_str().ok_or_else(wrong)?);
                let inside = file.components().all(|c| matches!(c, std::path::Component::Normal(_)));
                if inside { Ok(run.root().join(file)) } else { Err(wrong()) }
            })
            .collect();
    }
    for folder in [run.samples(), run.root().to_owned()] {
        let mut found = npz_files(&folder)?;
        found.retain(|path| *path != run.cali_data());
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn npz_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.extension().is_some_and(|e| e == "npz") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What a file says of its sample.
struct Head {
    image: usize,
    step: usize,
    sigma: f32,
    is_final: bool,
}

impl SampleFolder {
    /// Reads what every file says of itself, and makes a manifest of it.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the file that lacks something, or whose image lacks a step that others have.
    pub(super) fn open(
        run: &RunFolder,
        files: Vec<PathBuf>,
        manifest: Option<&Value>,
        model: &dyn Model,
    ) -> Result<(RunManifest, Self)> {
        let mut samples = BTreeMap::new();
        let mut sigmas: BTreeMap<usize, (f32, &PathBuf)> = BTreeMap::new();
        for path in &files {
            let head = head(&Npz::open(path)?)?;
            if head.is_final {
                continue;
            }
            let &mut (sigma, first) = sigmas.entry(head.step).or_insert((head.sigma, path));
            if (sigma - head.sigma).abs() > 1e-3 {
                let reason = format!(
                    "its noise level is {} at step {}, but {sigma} in `{}`",
                    head.sigma,
                    head.step,
                    first.display()
                );
                return Err(Error::malformed(KIND, path, reason));
            }
            if let Some(other) = samples.insert((head.image, head.step), path.clone()) {
                let reason = format!(
                    "it is of image {}, step {}, and so is `{}`",
                    head.image,
                    head.step,
                    other.display()
                );
                return Err(Error::malformed(KIND, path, reason));
            }
        }
        let kept_steps: Vec<usize> = sigmas.keys().copied().collect();
        let mut ids: Vec<usize> = samples.keys().map(|&(image, _)| image).collect();
        ids.dedup();
        let (Some(&first), Some(&last)) = (kept_steps.first(), kept_steps.last()) else {
            let reason = "no file holds a sample that is not a final latent";
            return Err(Error::malformed(KIND, run.root(), reason));
        };
        let mut renumbered = BTreeMap::new();
        for (image, id) in ids.iter().enumerate() {
            for step in &kept_steps {
                let Some(path) = samples.remove(&(*id, *step)) else {
                    let reason = format!("image {id} has no sample of step {step}, which other images have");
                    return Err(Error::malformed(KIND, run.root(), reason));
                };
                renumbered.insert((image, *step), path);
            }
        }
        let latent_size = {
            let x = latent(&renumbered[&(0, first)])?;
            (x.dim(0) as usize, x.dim(1) as usize)
        };
        let number = |key: &str| manifest.and_then(|m| m.get(key)).and_then(Value::as_f64);
        let (prompts, embeddings) = match prompts(manifest, &ids) {
            Some(prompts) => (prompts, None),
            None => {
                let paths = (0..ids.len()).map(|image| renumbered[&(image, first)].clone()).collect();
                (vec![String::new(); ids.len()], Some(paths))
            }
        };
        let cfg_scale = number("cfg_scale").map_or(model.defaults().cfg_weight, |w| w as f32);
        let num_steps = number("num_steps").map_or(last + 1, |n| (n as usize).max(last + 1));
        let mut all = vec![0.0; num_steps + 1];
        sigmas.iter().for_each(|(&step, (sigma, _))| all[step] = *sigma);
        let seed_base = number("seed_base").map_or(0, |n| n as u64);
        let images = prompts.into_iter().enumerate().map(|(image_id, prompt)| ImageRecord {
            image_id,
            prompt,
            seed: seed_base.wrapping_add(ids[image_id] as u64),
            cfg_weight: cfg_scale,
            num_steps,
            filename: None,
            latent_filename: String::new(),
        });
        let own = RunManifest {
            format: RunManifest::FORMAT.to_owned(),
            n_completed: ids.len(),
            num_images: ids.len(),
            num_steps,
            kept_steps,
            sigmas: all,
            cfg_scale,
            latent_size,
            model_version: model.spec().name.clone(),
            model_fingerprint: model.spec().fingerprint.clone(),
            seed_base,
            images: images.collect(),
        };
        let manifest = manifest.map(|_| run.manifest());
        Ok((own, Self { files: renumbered, embeddings, manifest }))
    }

    /// The file of a sample.
    pub(super) fn path(&self, image: usize, step: usize) -> Option<&PathBuf> {
        self.files.get(&(image, step))
    }

    /// For fingerprints: the contents of all files.
    pub(super) fn identity(&self) -> Result<Value> {
        let files = self.files.iter().map(|(key, path)| Ok((format!("{key:?}"), file_hash(path)?)));
        let files: BTreeMap<String, String> = files.collect::<Result<_>>()?;
        let manifest = self.manifest.as_deref().map(file_hash).transpose()?;
        Ok(json!({ "files": files, "manifest": manifest }))
    }

    /// The embeddings of the first images' prompts, and of the empty prompt if the files have it; `None` if prompts are
    /// known as text.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the file that has neither a prompt in a manifest nor an embedding.
    pub(super) fn embeddings(&self, images: usize) -> Result<Option<(Conditioning, Option<Conditioning>)>> {
        let Some(paths) = &self.embeddings else { return Ok(None) };
        let mut both = Vec::new();
        for path in &paths[..images.min(paths.len())] {
            let npz = Npz::open(path)?;
            if !npz.contains("conditioning") || !npz.contains("pooled_conditioning") {
                let reason = "its prompt is not known: there is no manifest.json that lists `images` with a `prompt`, and \
                              the file has no arrays `conditioning` and `pooled_conditioning`";
                return Err(Error::malformed(KIND, path, reason));
            }
            both.push((rows(&npz, "conditioning", 2)?, rows(&npz, "pooled_conditioning", 1)?));
        }
        let part = |row: usize| -> Result<Option<Conditioning>> {
            let has = |x: &Array| x.dim(0) as usize > row;
            if !both.iter().all(|(tokens, pooled)| has(tokens) && has(pooled)) {
                return Ok(None);
            }
            let all = both.iter().map(|(tokens, pooled)| {
                Conditioning { tokens: tokens.clone(), pooled: pooled.clone() }.rows(&[row])
            });
            let all = all.collect::<Result<Vec<_>>>()?;
            Ok(Some(Conditioning::concat(&all.iter().collect::<Vec<_>>())?))
        };
        let empty = part(1)?.map(|c| c.rows(&[0])).transpose()?;
        Ok(part(0)?.map(|prompts| (prompts, empty)))
    }
}

/// The prompts of these images, if the manifest has them all.
fn prompts(manifest: Option<&Value>, ids: &[usize]) -> Option<Vec<String>> {
    let images = manifest?.get("images")?.as_array()?;
    let of = |id: &usize| {
        let own = |m: &&Value| m.get("image_id").and_then(Value::as_u64) == Some(*id as u64);
        let record =
            images.iter().find(own).or_else(|| images.get(*id).filter(|m| m.get("image_id").is_none()))?;
        Some(record.get("prompt")?.as_str()?.to_owned())
    };
    ids.iter().map(of).collect()
}

fn head(npz: &Npz) -> Result<Head> {
    let place = file_place(npz.path());
    let count = |names: &[&str], of: Option<usize>, what: &str| -> Result<usize> {
        match number(npz, names)? {
            Some(n) if n >= 0.0 && n.fract() == 0.0 && n < 1e9 => Ok(n as usize),
            Some(n) => {
                Err(Error::malformed(KIND, npz.path(), format!("`{}` is {n}, expected a count", names[0])))
            }
            None => of.ok_or_else(|| {
                let reason = format!(
                    "neither an array `{}` nor a name such as 0000_000.npz (image, step) says its {what}",
                    names.join("` or `")
                );
                Error::malformed(KIND, npz.path(), reason)
            }),
        }
    };
    let sigma = match (number(npz, &SIGMA)?, number(npz, &TIMESTEP)?) {
        (Some(sigma), _) => sigma,
        (None, Some(timestep)) => timestep / 1000.0,
        (None, None) => {
            let reason = format!("no array {} or {} says its noise level", list(&SIGMA), list(&TIMESTEP));
            return Err(Error::malformed(KIND, npz.path(), reason));
        }
    };
    if !(0.0..=1e4).contains(&sigma) {
        return Err(Error::malformed(KIND, npz.path(), format!("its noise level is {sigma}")));
    }
    Ok(Head {
        image: count(&IMAGE, place.map(|p| p.0), "image")?,
        step: count(&STEP, place.map(|p| p.1), "step")?,
        sigma: sigma as f32,
        is_final: number(npz, &FINAL)?.is_some_and(|f| f != 0.0),
    })
}

/// Image and step by the file's name.
fn file_place(path: &Path) -> Option<(usize, usize)> {
    let (image, step) = path.file_stem()?.to_str()?.rsplit_once('_')?;
    let image = image.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    Some((image.parse().ok()?, step.parse().ok()?))
}

/// The only element of the first of these arrays that is there, whatever its type.
fn number(npz: &Npz, names: &[&str]) -> Result<Option<f64>> {
    let Some(name) = names.iter().find(|name| npz.contains(name)) else { return Ok(None) };
    fn as_type<T: Element>(npz: &Npz, name: &str) -> Option<Vec<T>> {
        npz.read::<T>(name).ok().map(|stored| stored.data)
    }
    let widen = |v: Vec<i64>| v.into_iter().map(|v| v as f64).collect::<Vec<_>>();
    let values = as_type::<f64>(npz, name)
        .or_else(|| as_type::<f32>(npz, name).map(|v| v.into_iter().map(f64::from).collect()))
        .or_else(|| as_type::<i64>(npz, name).map(widen))
        .or_else(|| as_type::<i32>(npz, name).map(|v| v.into_iter().map(f64::from).collect()))
        .or_else(|| {
            as_type::<bool>(npz, name).map(|v| v.into_iter().map(|v| f64::from(u8::from(v))).collect())
        });
    match values.as_deref() {
        Some([one]) => Ok(Some(*one)),
        Some(many) => {
            let reason = format!("array `{name}`: expected one number, found {}", many.len());
            Err(Error::malformed(KIND, npz.path(), reason))
        }
        None => {
            let reason = format!("array `{name}`: expected a number of type f32, f64, i32, i64 or bool");
            Err(Error::malformed(KIND, npz.path(), reason))
        }
    }
}

/// A sample's latent, `[h, w, channels]`; a leading 1 is left out.
pub(super) fn latent(path: &Path) -> Result<Array> {
    let npz = Npz::open(path)?;
    let name = LATENT.iter().find(|name| npz.contains(name)).ok_or_else(|| {
        let reason = format!("no array {}; it has {}", list(&LATENT), npz.names().join(", "));
        Error::malformed(KIND, path, reason)
    })?;
    let x = npz.array(name)?;
    match *x.shape() {
        [_, _, _] => Ok(x),
        [1, h, w, channels] => Ok(x.reshape(&[h, w, channels])?),
        _ => {
            let reason = format!("array `{name}` has shape {:?}, expected [h, w, channels]", x.shape());
            Err(Error::malformed(KIND, path, reason))
        }
    }
}

/// An array with rows, though one row may have been kept without that axis.
fn rows(npz: &Npz, name: &str, axes: usize) -> Result<Array> {
    let x = npz.array(name)?;
    match x.ndim() {
        n if n == axes => Ok(x.expand_dims(0)?),
        n if n == axes + 1 => Ok(x),
        _ => {
            let reason =
                format!("array `{name}` has shape {:?}, expected {axes} or {} axes", x.shape(), axes + 1);
            Err(Error::malformed(KIND, npz.path(), reason))
        }
    }
}

fn list(names: &[&str]) -> String {
    format!("`{}`", names.join("` or `"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_say_image_and_step() {
        let place = |name: &str| file_place(Path::new(name));
        assert_eq!(place("a/0003_012.npz"), Some((3, 12)));
        assert_eq!(place("sample_7_2.npz"), Some((7, 2)));
        assert_eq!(place("img0001_02.npz"), Some((1, 2)));
        assert_eq!((place("x.npz"), place("a_b.npz"), place("3_x.npz")), (None, None, None));
    }
}
