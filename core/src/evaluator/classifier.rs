//! The classifier: an ONNX graph, run by `rten`.

use std::path::{Path, PathBuf};

use rten::{Dimension, Model, NodeId, Value};

use super::Sight;
use crate::image::Image;
use crate::{Error, Result};

const KIND: &str = "ONNX classifier";

/// A graph with the input and the outputs that the head of [`super`] describes.
pub(super) struct Classifier {
    path: PathBuf,
    model: Model,
    image: NodeId,
    outputs: [NodeId; 2],
    size: Option<(usize, usize)>,
}

impl Classifier {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let malformed = |reason: String| Error::malformed(KIND, path, reason);
        // From memory: a graph that keeps its weights in other files is refused instead of reading any path.
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let model = Model::load(bytes).map_err(|e| malformed(e.to_string()))?;
        let node = |name: &str, among: &[NodeId], what: &str| {
            let id = model.find_node(name).filter(|id| among.contains(id));
            id.ok_or_else(|| malformed(format!("it has no {what} `{name}`")))
        };
        let image = node("image", model.input_ids(), "input")?;
        if model.input_ids().len() != 1 {
            return Err(malformed(format!(
                "it has {} inputs, expected `image` alone",
                model.input_ids().len()
            )));
        }
        let outputs =
            [node("features", model.output_ids(), "output")?, node("logits", model.output_ids(), "output")?];
        let size = match model.node_info(image).and_then(|info| info.shape()).as_deref() {
            Some([_, Dimension::Fixed(3), Dimension::Fixed(h), Dimension::Fixed(w)]) => Some((*h, *w)),
            Some([_, Dimension::Fixed(3) | Dimension::Symbolic(_), _, _]) | None => None,
            Some(other) => {
                return Err(malformed(format!("`image` is {other:?}, expected [n, 3, height, width]")));
            }
        };
        Ok(Self { path: path.to_owned(), image, outputs, size, model })
    }

    /// See [`super::Evaluator::image_size`].
    pub(super) fn image_size(&self) -> Option<(usize, usize)> {
        self.size
    }

    /// One run.
    pub(super) fn run(&self, images: &[Image], classes: usize) -> Result<Vec<Sight>> {
        let Some(first) = images.first() else { return Ok(Vec::new()) };
        let (height, width) = self.size.unwrap_or((first.height(), first.width()));
        let mut pixels: Vec<f32> = Vec::with_capacity(images.len() * 3 * height * width);
        for image in images {
            if (image.height(), image.width()) != (height, width) {
                return Err(Error::Shape {
                    what: "image for the evaluator".into(),
                    expected: format!("{height} × {width} pixels"),
                    found: [image.height(), image.width()]
                        .map(|n| i32::try_from(n).unwrap_or(i32::MAX))
                        .to_vec(),
                });
            }
            // Pixels come with their colours side by side, the classifier wants one plane a colour.
            for colour in 0..3 {
                pixels.extend(image.pixels().iter().skip(colour).step_by(3));
            }
        }
        let malformed = |reason: String| Error::malformed(KIND, &self.path, reason);
        let input = Value::from_shape([images.len(), 3, height, width], pixels)
            .map_err(|e| malformed(e.to_string()))?;
        let [features, logits] = self
            .model
            .run_n(vec![(self.image, input.into())], self.outputs, None)
            .map_err(|e| malformed(format!("it cannot be run: {e}")))?;
        let rows = |name: &str, value: Value| -> Result<Vec<Vec<f32>>> {
            let (shape, values) =
                value.into_shape_vec::<f32, 2>().map_err(|e| malformed(format!("`{name}`: {e}")))?;
            if shape[0] != images.len() || values.iter().any(|v| !v.is_finite()) {
                return Err(malformed(format!(
                    "`{name}` of {} images is {shape:?} or holds NaN or infinite values",
                    images.len()
                )));
            }
            Ok(values.chunks(shape[1].max(1)).map(<[f32]>::to_vec).collect())
        };
        let (features, logits) = (rows("features", features)?, rows("logits", logits)?);
        if features.len() != images.len() || logits.iter().any(|row| row.len() != classes) {
            let found = logits.first().map_or(0, Vec::len);
            return Err(malformed(format!("it knows {found} classes, and labels.json names {classes}")));
        }
        Ok(features.into_iter().zip(logits).map(|(features, logits)| Sight { features, logits }).collect())
    }
}
