//! The statistics of a run as those who show them need them: steps from noise to image, layers in order.

use std::collections::BTreeMap;

use taq_core::artifacts::{Npz, RunFolder, read_document, read_json};
use taq_core::stats::{Histogram, LayerScalars, StatisticsIndex, StepIndex, quantile_f64};
use taq_core::{Error, LayerId, Result};

use super::layers;

/// A channel is an outlier whose range is over so many times the median channel's.
const OUTLIER: f64 = 2.5;

/// Statistics of the layers' inputs.
pub(crate) struct Statistics {
    pub(crate) index: StatisticsIndex,
    /// In the order of [`layers::sort`].
    pub(crate) layers: Vec<LayerId>,
    /// σ falling.
    pub(crate) steps: Vec<Step>,
}

/// One timestep.
pub(crate) struct Step {
    pub(crate) step: usize,
    pub(crate) sigma: f64,
    scalars: BTreeMap<LayerId, LayerScalars>,
    arrays: Npz,
}

/// Per-channel vectors of one layer at one timestep.
pub(crate) struct Channels {
    pub(crate) low: Vec<f32>,
    pub(crate) high: Vec<f32>,
    pub(crate) shift: Option<Vec<f32>>,
}

impl Statistics {
    /// Reads the scalars and opens the arrays, on behalf of the command `stage`.
    ///
    /// # Errors
    /// [`Error::StageMissing`] before `observe` or where a step is missing, and what reading documents gives.
    pub(crate) fn open(run: &RunFolder, stage: &'static str) -> Result<Self> {
        let missing = |needs: String| Error::StageMissing {
            stage,
            needs,
            run: run.root().to_owned(),
            first: "observe",
        };
        let path = run.layer_statistics();
        if !path.exists() {
            return Err(missing("statistics of the activations".into()));
        }
        let index: StatisticsIndex = read_document(&path)?;
        let mut steps = Vec::new();
        for &step in &index.step_keys {
            let Some(&sigma) = index.sigma_map.get(&step) else {
                return Err(Error::malformed(
                    "statistics index",
                    &path,
                    format!("sigma_map lacks step {step}"),
                ));
            };
            let (scalars, arrays) = (run.step_index(step), run.step_stats(step));
            if !scalars.exists() || !arrays.exists() {
                return Err(missing(format!("the statistics of step {step}")));
            }
            let scalars: StepIndex = read_json(&scalars, "step index")?;
            steps.push(Step { step, sigma: sigma.into(), scalars: scalars.0, arrays: Npz::open(&arrays)? });
        }
        steps.sort_by(|a, b| b.sigma.total_cmp(&a.sigma));
        let first = steps.first().filter(|s| !s.scalars.is_empty());
        let first = first.ok_or_else(|| missing("statistics of at least one layer at one step".into()))?;
        let mut layers: Vec<LayerId> = first.scalars.keys().cloned().collect();
        layers::sort(&mut layers);
        for step in &steps {
            if let Some(layer) = layers.iter().find(|id| !step.scalars.contains_key(id)) {
                let step = step.step;
                let reason = format!("{layer} was not observed at step {step}; run `taq observe --force`");
                return Err(Error::settings("statistics", reason));
            }
        }
        Ok(Self { index, layers, steps })
    }

    /// Each layer's scalar at each step: a row a layer.
    pub(crate) fn table(&self, value: impl Fn(&LayerScalars) -> f64) -> Vec<Vec<f64>> {
        self.layers.iter().map(|layer| self.row(layer, &value)).collect()
    }

    /// One layer's scalar at each step.
    pub(crate) fn row(&self, layer: &LayerId, value: impl Fn(&LayerScalars) -> f64) -> Vec<f64> {
        self.steps.iter().filter_map(|step| step.scalars.get(layer)).map(value).collect()
    }

    /// σ of each step.
    pub(crate) fn sigmas(&self) -> Vec<f64> {
        self.steps.iter().map(|s| s.sigma).collect()
    }

    /// σ of each step as a label.
    pub(crate) fn sigma_labels(&self) -> Vec<String> {
        self.steps.iter().map(|s| format!("{:.2}", s.sigma)).collect()
    }

    /// Positions of these steps.
    ///
    /// # Errors
    /// [`Error::Settings`] with the step that was not observed and those that were.
    pub(crate) fn positions(&self, wanted: &[usize]) -> Result<Vec<usize>> {
        let position = |&step: &usize| {
            self.steps.iter().position(|s| s.step == step).ok_or_else(|| {
                let known: Vec<String> = self.index.step_keys.iter().map(usize::to_string).collect();
                let reason = format!("step {step} was not observed; observed are {}", known.join(", "));
                Error::settings("--snapshot-steps", reason)
            })
        };
        wanted.iter().map(position).collect()
    }

    /// Layers whose range changes most from step to step, most first. Of layers with the same input (queries, keys
    /// and values of one attention) only the first counts.
    pub(crate) fn most_variable(&self, among: &[LayerId]) -> Vec<LayerId> {
        let mut seen: Vec<Vec<f64>> = Vec::new();
        let mut found = Vec::new();
        for layer in among {
            let row = self.row(layer, |s| f64::from(s.tensor_absmax));
            if !seen.contains(&row) {
                found.push((variability(&row), layer.clone()));
                seen.push(row);
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.into_iter().map(|(_, layer)| layer).collect()
    }

    /// Distribution of a layer's values at the step in this position; `None` if the observer keeps none.
    pub(crate) fn histogram(&self, position: usize, layer: &LayerId) -> Result<Option<Histogram>> {
        let arrays = &self.steps[position].arrays;
        let name = |field: &str| format!("{}__{field}", layer.array_prefix());
        if !arrays.contains(&name("hist_counts")) {
            return Ok(None);
        }
        let counts: Vec<u64> = arrays.read(&name("hist_counts"))?.data;
        let edges = self.vector(position, layer, "hist_edges", counts.len() + 1)?;
        // Of a constant input, neighbouring edges are the same number.
        if edges.windows(2).any(|e| e[1] < e[0]) {
            let reason = format!("array `{}`: expected edges that do not fall", name("hist_edges"));
            return Err(Error::malformed("npz file", arrays.path(), reason));
        }
        Ok(Some(Histogram { counts, edges }))
    }

    /// Per-channel vectors at the step in this position.
    pub(crate) fn channels(&self, position: usize, layer: &LayerId) -> Result<Channels> {
        let arrays = &self.steps[position].arrays;
        let name = |field: &str| format!("{}__{field}", layer.array_prefix());
        let count = arrays.read::<f32>(&name("avg_min"))?.data.len();
        let shift = arrays.contains(&name("shift"));
        Ok(Channels {
            low: self.vector(position, layer, "avg_min", count)?,
            high: self.vector(position, layer, "avg_max", count)?,
            shift: shift.then(|| self.vector(position, layer, "shift", count)).transpose()?,
        })
    }

    fn vector(&self, position: usize, layer: &LayerId, field: &str, length: usize) -> Result<Vec<f32>> {
        let step = &self.steps[position];
        let values: Vec<f32> = step.arrays.vec(&format!("{}__{field}", layer.array_prefix()), &[length])?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite { what: format!("`{field}` of {layer} at step {}", step.step) });
        }
        Ok(values)
    }
}

impl Channels {
    /// Which channels are outliers.
    pub(crate) fn outliers(&self) -> Vec<bool> {
        let ranges: Vec<f64> =
            self.low.iter().zip(&self.high).map(|(low, high)| f64::from(high - low)).collect();
        let limit = OUTLIER * quantile_f64(&ranges, 0.5).unwrap_or(0.0);
        ranges.into_iter().map(|range| range > limit).collect()
    }
}

/// Largest less smallest value that a layer has seen.
pub(crate) fn range(scalars: &LayerScalars) -> f64 {
    f64::from(scalars.tensor_max) - f64::from(scalars.tensor_min)
}

/// Largest over smallest; 1 where all are 0.
pub(crate) fn variability(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(0.0, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    if largest > 0.0 { largest / smallest.max(largest * 1e-6) } else { 1.0 }
}

/// Positions of steps to show where none are asked for: `most` of them from first to last, evenly.
pub(crate) fn spread(count: usize, most: usize) -> Vec<usize> {
    if count <= most || most < 2 {
        return (0..count.min(most.max(1))).collect();
    }
    (0..most).map(|i| (i * (count - 1) + (most - 1) / 2) / (most - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variability_is_a_ratio() {
        assert_eq!(variability(&[2.0, 8.0, 4.0]), 4.0);
        assert_eq!(variability(&[0.0, 0.0]), 1.0);
        assert!(variability(&[0.0, 3.0]).is_finite());
    }

    #[test]
    fn outliers_have_a_range_over_two_and_a_half_medians() {
        let low = vec![-1.0, -0.5, 0.0, -2.0, -1.0];
        let high = vec![1.0, 1.5, 2.0, 3.1, 4.0];
        // Ranges 2, 2, 2, 5.1 and 5; the median is 2.
        let channels = Channels { low, high, shift: None };
        assert_eq!(channels.outliers(), [false, false, false, true, false]);
    }

    #[test]
    fn a_range_is_largest_less_smallest() {
        let scalars = LayerScalars { tensor_min: -1.5, tensor_max: 4.0, ..LayerScalars::default() };
        assert_eq!(range(&scalars), 5.5);
    }

    #[test]
    fn snapshots_are_spread_from_first_to_last() {
        assert_eq!(spread(28, 5), [0, 7, 14, 20, 27]);
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(1, 5), [0]);
        assert_eq!(spread(50, 2), [0, 49]);
    }
}
