//! The evaluator that a model may bring: a classifier that says what is to be seen in a generated image.
//!
//! It is the ruler for *prompt accuracy*, the share of images that are recognised as what their prompt names. An
//! evaluator is a folder with two files, and knows no more of the model than what its images look like:
//!
//! - `classifier.onnx`, in one file: input `image`, `[n, 3, height, width]`, RGB from 0 to 1; outputs `features`,
//!   `[n, any]`, and `logits`, `[n, classes]`, f32. It runs on the CPU, whatever MLX computes on.
//! - `labels.json`: [`Labels`].
//!
//! Images are looked at as they come from the VAE, before they are rounded to the 8 bits of a PNG file, as in every
//! other metric.

mod classifier;
mod extractor;
mod labels;

use std::path::{Path, PathBuf};

use classifier::Classifier;
pub use extractor::{FeatureExtractor, PixelRange};
pub use labels::Labels;

use crate::artifacts::{Fingerprint, Parts, file_hash, read_json};
use crate::image::Image;
use crate::{Error, Result};

/// Images in one run of the classifier.
const BATCH: usize = 16;

/// What the evaluator made of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Sight {
    /// The image's features.
    pub features: Vec<f32>,
    /// One value a class; the largest is what the image is taken for.
    pub logits: Vec<f32>,
}

impl Sight {
    /// The class that the image is taken for, as its place among [`Labels::classes`]; among equals the first.
    pub fn class(&self) -> usize {
        let larger = |best: usize, at: usize| if self.logits[at] > self.logits[best] { at } else { best };
        (0..self.logits.len()).fold(0, larger)
    }
}

/// See the module's head.
pub struct Evaluator {
    folder: PathBuf,
    classifier: Classifier,
    labels: Labels,
}

impl Evaluator {
    /// Whether the folder has the files of an evaluator.
    pub fn is_in(folder: &Path) -> bool {
        classifier_of(folder).is_file() && labels_of(folder).is_file()
    }

    /// Reads an evaluator.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Malformed`] if it is not what the module's head says.
    pub fn open(folder: &Path) -> Result<Self> {
        let labels: Labels = read_json(&labels_of(folder), "list of labels")?;
        labels.check().map_err(|reason| Error::malformed("list of labels", labels_of(folder), reason))?;
        let classifier = Classifier::open(&classifier_of(folder))?;
        Ok(Self { folder: folder.to_owned(), classifier, labels })
    }

    /// Classes and captions.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Height and width in pixels of the images that it takes; `None` if it takes any.
    pub fn image_size(&self) -> Option<(usize, usize)> {
        self.classifier.image_size()
    }

    /// Hash of both files.
    ///
    /// # Errors
    /// [`Error::Io`] if they are no longer there.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let hash = |path: PathBuf| file_hash(&path).map(serde_json::Value::from);
        let parts: Parts = [
            ("classifier".to_owned(), hash(classifier_of(&self.folder))?),
            ("labels".to_owned(), hash(labels_of(&self.folder))?),
        ]
        .into();
        Ok(Fingerprint::of(&parts))
    }

    /// Looks at images, all of one size.
    ///
    /// # Errors
    /// [`Error::Shape`] if they have another size than [`Self::image_size`] or each other's; [`Error::Malformed`] if
    /// the classifier does not answer with one finite value a class.
    pub fn look(&self, images: &[Image]) -> Result<Vec<Sight>> {
        let mut sights = Vec::with_capacity(images.len());
        for batch in images.chunks(BATCH) {
            sights.extend(self.classifier.run(batch, self.labels.classes().len())?);
        }
        Ok(sights)
    }
}

fn classifier_of(folder: &Path) -> PathBuf {
    folder.join("classifier.onnx")
}

fn labels_of(folder: &Path) -> PathBuf {
    folder.join("labels.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logit_is_the_class_and_among_equals_the_first() {
        let class = |logits: &[f32]| Sight { features: vec![], logits: logits.to_vec() }.class();
        assert_eq!((class(&[-3.0, -1.0, -2.0]), class(&[0.0, 2.0, 2.0]), class(&[1.0])), (1, 1, 0));
    }

    #[test]
    fn a_folder_without_an_evaluator_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Evaluator::is_in(folder.path()));
        std::fs::write(labels_of(folder.path()), r#"{"classes": ["a"], "captions": {}}"#).unwrap();
        assert!(!Evaluator::is_in(folder.path()));
        let message = Evaluator::open(folder.path()).err().unwrap().to_string();
        assert!(message.contains("classifier.onnx"), "{message}");
        std::fs::write(classifier_of(folder.path()), "not onnx").unwrap();
        assert!(Evaluator::is_in(folder.path()));
        let message = Evaluator::open(folder.path()).err().unwrap().to_string();
        assert!(message.contains("classifier.onnx` is not a valid ONNX classifier"), "{message}");
    }
}
