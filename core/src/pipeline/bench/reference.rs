//! The images that others are measured against, from a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::artifacts::Npz;
use crate::image::Image;
use crate::pipeline::Session;
use crate::pipeline::generation::Job;
use crate::pipeline::scores::Generated;
use crate::{Error, Result};

/// A folder's images.
pub(super) struct Read {
    /// In the order of their names.
    pub(super) images: Vec<Image>,
    /// Whether they have the job's prompts and noise, in its order.
    pub(super) paired: bool,
    /// With their latents, for comparing image by image, if they are pairs and the folder has latents.
    pub(super) twins: Option<Generated>,
}

/// Reads every PNG file of a folder, after checking that they were made as `job` says.
///
/// # Errors
/// [`Error::Settings`] if the folder has no PNG file, or one says that it was made with other steps, guidance or sampler.
pub(super) fn read(session: &Session, job: &Job, folder: &Path) -> Result<Read> {
    let files = files(folder)?;
    if files.len() < 2 {
        let reason = format!("`{}` has {} PNG files, expected at least 2", folder.display(), files.len());
        return Err(Error::settings("reference", reason));
    }
    let (mut images, mut paired) = (Vec::new(), files.len() == job.prompts.len());
    for (index, file) in files.iter().enumerate() {
        let (image, texts) = Image::read_png(file)?;
        check(session, job, file, &texts)?;
        paired &= index < job.prompts.len() && twin(session, job, index, &texts);
        images.push(image);
    }
    let latents = folder.join("latents.npz");
    if !(paired && latents.is_file()) {
        tracing::warn!(
            "the images of `{}` have other prompts or seeds, or no latents.npz: not compared one by one",
            folder.display()
        );
        return Ok(Read { images, paired, twins: None });
    }
    let latents = Npz::open(&latents)?.array("latents")?;
    if latents.shape() != job.noise.shape() {
        let reason = format!("expected {:?}, found {:?}", job.noise.shape(), latents.shape());
        return Err(Error::malformed("final latents", folder.join("latents.npz"), reason));
    }
    let generated = Generated { latents, images: images.clone(), batches: Vec::new() };
    Ok(Read { images, paired, twins: Some(generated) })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Images that do not say how they were made pass: photographs have no steps.
fn check(session: &Session, job: &Job, file: &Path, texts: &BTreeMap<String, String>) -> Result<()> {
    let refuse = |what: &str, theirs: &str, ours: &str, flag: &str| {
        let file = file.display();
        let reason = format!(
            "`{file}` was made with {what} {theirs}, these images with {ours}: they would differ by that too. Use {flag} \
             {theirs}, or another reference"
        );
        Err(Error::settings("reference", reason))
    };
    let steps = job.schedule.steps().to_string();
    match texts.get("steps") {
        Some(theirs) if *theirs != steps => return refuse("steps", theirs, &steps, "--steps"),
        _ => {}
    }
    match texts.get("cfg_weight").map(|w| (w, w.parse::<f32>().ok())) {
        Some((theirs, weight)) if weight != Some(job.cfg_weight) => {
            return refuse("guidance weight", theirs, &job.cfg_weight.to_string(), "--cfg");
        }
        _ => {}
    }
    match texts.get("sampler") {
        Some(theirs) if theirs != session.sampler_name() => {
            refuse("sampler", theirs, session.sampler_name(), "--sampler")
        }
        _ => Ok(()),
    }
}

/// Whether the image began as the job's.
fn twin(session: &Session, job: &Job, index: usize, texts: &BTreeMap<String, String>) -> bool {
    let ours: BTreeMap<String, String> =
        job.texts(session, "", index).into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
    let keys = ["prompt", "negative_prompt", "seed", "noise", "size", "img2img", "strength"];
    keys.iter().all(|key| ours.get(*key) == texts.get(*key))
}
