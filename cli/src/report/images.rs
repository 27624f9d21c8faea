//! Generated images, embedded as they are on disk.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use taq_core::artifacts::RunFolder;
use taq_core::manifest::Variant;
use taq_core::pipeline::{ImageScore, Report};
use taq_core::{Error, Result};

/// Bytes of images on disk that a report embeds unless a number is asked for; base64 makes a third more of them.
const ROOM: u64 = 6_000_000;
/// Narrower images are enlarged without smoothing, so that what changed is not smoothed away.
const SMALL: u32 = 256;

/// One image.
pub(super) struct Picture {
    /// `data:image/png;base64,…`
    pub(super) source: String,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Against full precision; empty of full precision itself.
    pub(super) score: String,
    /// What the evaluator takes it for, where that is not what the prompt names.
    pub(super) mistaken: Option<String>,
}

/// One prompt.
pub(super) struct ImageRow {
    pub(super) prompt: String,
    /// In the order of [`Images::variants`].
    pub(super) pictures: Vec<Picture>,
}

/// The section.
pub(super) struct Images {
    pub(super) variants: Vec<&'static str>,
    pub(super) rows: Vec<ImageRow>,
    pub(super) total: usize,
    pub(super) small: bool,
}

impl Images {
    /// Reads the images of `wanted` prompts; `None` if there are none.
    ///
    /// # Errors
    /// [`Error::Io`] if an image is missing, [`Error::Malformed`] if it is no PNG file.
    pub(super) fn read(run: &RunFolder, report: &Report, wanted: Option<usize>) -> Result<Option<Self>> {
        let Some(last) = report.variants.last() else { return Ok(None) };
        let total = last.images.len();
        let mut variants = vec![Variant::FullPrecision];
        variants.extend(report.variants.iter().map(|v| v.variant));
        let count = match wanted {
            Some(count) => count,
            None => fitting(run, &variants, total)?,
        };
        let errors: Vec<f64> = last.images.iter().map(|i| i.latent_error).collect();
        let mut rows = Vec::new();
        for index in spread(&errors, count) {
            let score = |variant: Variant| {
                let found = report.variants.iter().find(|v| v.variant == variant)?;
                found.images.get(index)
            };
            let picture = |&variant: &Variant| picture(&run.generated_image(variant, index), score(variant));
            rows.push(ImageRow {
                prompt: last.images[index].prompt.clone(),
                pictures: variants.iter().map(picture).collect::<Result<_>>()?,
            });
        }
        let small = rows.iter().flat_map(|r| &r.pictures).all(|p| p.width < SMALL);
        let variants = variants.into_iter().map(Variant::name).collect();
        Ok((!rows.is_empty()).then_some(Self { variants, rows, total, small }))
    }
}

/// How many prompts fit into [`ROOM`], at least one.
fn fitting(run: &RunFolder, variants: &[Variant], total: usize) -> Result<usize> {
    let mut bytes = 0;
    for (count, index) in (0..total).enumerate() {
        for &variant in variants {
            let path = run.generated_image(variant, index);
            bytes += fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        }
        if bytes > ROOM {
            return Ok(count.max(1));
        }
    }
    Ok(total)
}

/// Places of `count` images, from the best to the worst at even distances, in the order of the prompts: neither good
/// nor bad ones are picked.
fn spread(errors: &[f64], count: usize) -> Vec<usize> {
    let count = count.min(errors.len());
    let mut ranked: Vec<usize> = (0..errors.len()).collect();
    ranked.sort_by(|&a, &b| errors[a].total_cmp(&errors[b]));
    let last = errors.len().saturating_sub(1);
    let mut chosen: Vec<usize> = match count {
        0 => Vec::new(),
        1 => vec![ranked[last / 2]],
        _ => (0..count).map(|i| ranked[i * last / (count - 1)]).collect(),
    };
    chosen.sort_unstable();
    chosen
}

fn picture(path: &Path, score: Option<&ImageScore>) -> Result<Picture> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let (width, height) =
        size(&bytes).ok_or_else(|| Error::malformed("image", path, "expected a PNG file"))?;
    let text = |s: &ImageScore| {
        let decibels = s.psnr.map_or_else(|| "equal".to_owned(), |p| format!("{p:.1}\u{a0}dB"));
        format!("{decibels}, latent error {:.1}\u{a0}%", 100.0 * s.latent_error)
    };
    let mistaken = |s: &ImageScore| s.seen_as.clone().filter(|_| s.recognized == Some(false));
    Ok(Picture {
        source: format!("data:image/png;base64,{}", BASE64_STANDARD.encode(&bytes)),
        width,
        height,
        score: score.map(text).unwrap_or_default(),
        mistaken: score.and_then(mistaken),
    })
}

/// Width and height of a PNG file: its first chunk has them.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    (header.get(4..8)? == b"IHDR").then_some(())?;
    Some((number(8)?, number(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_spread_from_best_to_worst() {
        let errors = [0.5, 0.1, 0.9, 0.3, 0.7];
        assert_eq!(spread(&errors, 9), [0, 1, 2, 3, 4]);
        // The best is the second, the middle one the first, the worst the third.
        assert_eq!(spread(&errors, 3), [0, 1, 2]);
        assert_eq!(spread(&errors, 1), [0]);
        assert!(spread(&errors, 0).is_empty() && spread(&[], 3).is_empty());
    }

    #[test]
    fn sizes_are_read_from_the_first_chunk() {
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        file.extend([0, 0, 1, 0, 0, 0, 0, 64, 8, 2]);
        assert_eq!(size(&file), Some((256, 64)));
        assert_eq!(size(&file[..20]), None);
        assert_eq!(size(b"<svg onload=alert(1)>"), None);
    }
}
