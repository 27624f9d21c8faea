//! A network that turns images into features: for the distances of sets of images.
//!
//! Any ONNX graph in one file will do whose only input is `[n, 3, height, width]`, f32, and that has an output of features,
//! `[n, width]` or `[n, width, 1, 1]`: the one called `features`, else the first. An output called `logits` gives the
//! inception score too. An Inception-v3 as pytorch-fid exports it takes values from 0 to 1, torch-fidelity's bytes.

use std::path::{Path, PathBuf};

use rten::{Dimension, Model, NodeId, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BATCH, Sight};
use crate::artifacts::file_hash;
use crate::image::Image;
use crate::{Error, Result};

const KIND: &str = "ONNX feature extractor";

/// The range of values that a graph expects of pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PixelRange {
    /// From 0 to 1.
    #[default]
    Unit,
    /// From −1 to 1.
    Signed,
    /// From 0 to 255.
    Bytes,
}

/// See the module's head.
pub struct FeatureExtractor {
    path: PathBuf,
    model: Model,
    image: NodeId,
    features: NodeId,
    logits: Option<NodeId>,
    size: Option<(usize, usize)>,
    range: PixelRange,
}

impl FeatureExtractor {
    /// Reads a graph.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is not what the module's head says.
    pub fn open(path: &Path, range: PixelRange) -> Result<Self> {
        let malformed = |reason: String| Error::malformed(KIND, path, reason);
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let model = Model::load(bytes).map_err(|e| malformed(e.to_string()))?;
        let &[image] = model.input_ids() else {
            return Err(malformed(format!("it has {} inputs, expected one", model.input_ids().len())));
        };
        let output = |name: &str| model.find_node(name).filter(|id| model.output_ids().contains(id));
        let features = output("features").or_else(|| model.output_ids().first().copied());
        let features = features.ok_or_else(|| malformed("it has no output".into()))?;
        let size = match model.node_info(image).and_then(|info| info.shape()).as_deref() {
            Some([_, Dimension::Fixed(3), Dimension::Fixed(h), Dimension::Fixed(w)]) => Some((*h, *w)),
            Some([_, Dimension::Fixed(3) | Dimension::Symbolic(_), _, _]) | None => None,
            Some(other) => {
                return Err(malformed(format!("its input is {other:?}, expected [n, 3, height, width]")));
            }
        };
        let logits = output("logits").filter(|id| *id != features);
        Ok(Self { path: path.to_owned(), image, features, logits, size, range, model })
    }

    /// Hash of the file.
    ///
    /// # Errors
    /// [`Error::Io`] if it is no longer there.
    pub fn fingerprint(&self) -> Result<String> {
        file_hash(&self.path)
    }

    /// Features of images, and logits (else empty). Images of another size than the graph's are scaled to it.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the graph cannot be run on them or answers with something else.
    pub fn look(&self, images: &[Image]) -> Result<Vec<Sight>> {
        let mut sights = Vec::with_capacity(images.len());
        for batch in images.chunks(BATCH) {
            sights.extend(self.run(batch)?);
        }
        Ok(sights)
    }

    fn run(&self, images: &[Image]) -> Result<Vec<Sight>> {
        let malformed = |reason: String| Error::malformed(KIND, &self.path, reason);
        let Some(first) = images.first() else { return Ok(Vec::new()) };
        let (height, width) = self.size.unwrap_or((first.height(), first.width()));
        let mut pixels: Vec<f32> = Vec::with_capacity(images.len() * 3 * height * width);
        for image in images {
            let scaled = image.resized(height, width);
            for colour in 0..3 {
                let plane = scaled.pixels().iter().skip(colour).step_by(3);
                pixels.extend(plane.map(|v| match self.range {
                    PixelRange::Unit => *v,
                    PixelRange::Signed => 2.0 * v - 1.0,
                    PixelRange::Bytes => 255.0 * v,
                }));
            }
        }
        let input = Value::from_shape([images.len(), 3, height, width], pixels)
            .map_err(|e| malformed(e.to_string()))?;
        let outputs: Vec<NodeId> = std::iter::once(self.features).chain(self.logits).collect();
        let found = self
            .model
            .run(vec![(self.image, input.into())], &outputs, None)
            .map_err(|e| malformed(format!("it cannot be run: {e}")))?;
        let mut rows = found.into_iter().zip(&outputs).map(|(value, id)| self.rows(value, *id, images.len()));
        let features = rows.next().transpose()?.unwrap_or_default();
        let logits = rows.next().transpose()?.unwrap_or_else(|| vec![Vec::new(); images.len()]);
        Ok(features.into_iter().zip(logits).map(|(features, logits)| Sight { features, logits }).collect())
    }

    /// One row of values an image.
    fn rows(&self, value: Value, id: NodeId, images: usize) -> Result<Vec<Vec<f32>>> {
        let malformed = |reason: String| Error::malformed(KIND, &self.path, reason);
        let rank = self.model.node_info(id).and_then(|info| info.shape()).map_or(2, |shape| shape.len());
        let flat = match rank {
            4 => value.into_shape_vec::<f32, 4>().map(|(shape, values)| (shape.to_vec(), values)),
            _ => value.into_shape_vec::<f32, 2>().map(|(shape, values)| (shape.to_vec(), values)),
        };
        let (shape, values) = flat.map_err(|e| malformed(format!("an output: {e}")))?;
        let width = values.len() / images.max(1);
        if shape.first() != Some(&images) || shape[2..].iter().any(|&n| n != 1) || width == 0 {
            let reason = format!("an output of {images} images is {shape:?}, expected [{images}, width]");
            return Err(malformed(reason));
        }
        if values.iter().any(|v| !v.is_finite()) {
            return Err(malformed("an output holds NaN or infinite values".into()));
        }
        Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
    }
}
