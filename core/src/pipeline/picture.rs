//! Pictures into files of the user's choice, without a trace in the run folder.

use std::path::{Path, PathBuf};

use super::Session;
use super::generate::{paint_variant, row_label, variants, write_image};
use super::generation::Job;
use super::report::VariantReport;
use super::round::{WeightsConfig, effective_plan};
use super::scores::{Generated, compare};
use crate::Result;
use crate::image::{Image, SheetLayout, sheet};
use crate::manifest::{GenerateSettings, Variant};

/// What [`picture`] has painted.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// Every variant but full precision against it; empty unless compared.
    pub scores: Vec<VariantReport>,
}

/// Paints with the last of the variants that the settings ask for (rounded weights, if the run has them), into `file`,
/// or with several prompts into files numbered after it. With `compared`, all variants are run, scored against full
/// precision, and with `side_by_side` also shown in `file` as one sheet.
///
/// # Errors
/// As [`super::generate`].
pub fn picture(
    session: &Session,
    settings: &GenerateSettings,
    file: &Path,
    compared: bool,
    side_by_side: bool,
) -> Result<Picture> {
    let run = &session.run;
    let job = Job::new(session, settings)?;
    let mut variants = variants(session, settings)?;
    if !compared {
        variants.drain(..variants.len() - 1);
    }
    let plan = match variants.iter().any(|v| *v != Variant::FullPrecision) {
        true => Some(effective_plan(run, "generate", session.model.spec())?),
        false => None,
    };
    let paint = |&variant: &Variant| paint_variant(session, &job, variant, plan.as_ref());
    let all: Vec<Generated> = variants.iter().map(paint).collect::<Result<_>>()?;
    let mut files = Vec::new();
    if side_by_side {
        let weights = WeightsConfig::of(run)?;
        let layout = SheetLayout {
            columns: job.prompts.clone(),
            rows: variants.iter().map(|v| row_label(*v, weights.as_ref())).collect(),
            enlarge: 0,
        };
        let rows: Vec<Vec<Image>> = all.iter().map(|g| g.images.clone()).collect();
        let texts = job.texts(session, "all", 0);
        let texts: Vec<(&str, &str)> = texts.iter().map(|(key, text)| (*key, text.as_str())).collect();
        sheet(&rows, &layout)?.write_png(file, &texts)?;
        files.push(file.to_owned());
    } else if let (Some(&variant), Some(generated)) = (variants.last(), all.last()) {
        for index in 0..generated.images.len() {
            let path = if job.prompts.len() > 1 { numbered(file, index) } else { file.to_owned() };
            write_image(session, &job, variant.name(), generated, index, &path)?;
            files.push(path);
        }
    }
    let scored = variants.iter().zip(&all).skip(1).map(|(&variant, generated)| {
        compare(variant, &job.prompts, &all[0], generated, job.judge(generated)?.as_deref())
    });
    let scores = scored.collect::<Result<_>>()?;
    Ok(Picture { files, scores })
}

/// `cat.png` as `cat_0003.png`.
fn numbered(file: &Path, index: usize) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let extension = file.extension().map_or_else(|| "png".into(), |e| e.to_string_lossy());
    file.with_file_name(format!("{stem}_{index:04}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pictures_are_numbered() {
        assert_eq!(numbered(Path::new("a/cat.png"), 3), Path::new("a/cat_0003.png"));
        assert_eq!(numbered(Path::new("cat"), 12), Path::new("cat_0012.png"));
    }
}
