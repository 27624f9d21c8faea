//! Where the rounding of a weight begins.

use mlx_rs::Array;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::{Clipping, GridParams, to_matrix};
use taq_core::{BlockJob, Context, LayerJob, Result};

use super::weights::WeightLearner;
use crate::rounders::compensate::{Compensation, second_moments};

/// Which integers learning begins at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Between the two neighbours, where the weight is.
    Nearest,
    /// Most of the way to what GPTQ chooses.
    #[default]
    Gptq,
}

impl Start {
    /// What the layers' weights need of their inputs, in the order of the job.
    pub(in crate::rounders) fn moments(self, job: &BlockJob<'_>, cx: &Context) -> Result<Vec<Option<Array>>> {
        match self {
            Self::Nearest => Ok(vec![None; job.layers.len()]),
            Self::Gptq => Ok(second_moments(job, cx)?.into_iter().map(Some).collect()),
        }
    }

    /// The layer's weight, its columns times `multiplier` (empty: 1), on a grid with this clipping.
    pub(in crate::rounders) fn weight(
        layer: &LayerJob,
        clipping: Clipping,
        multiplier: &[f32],
        moments: Option<&Array>,
    ) -> Result<WeightLearner> {
        layer.grid.validate(&layer.spec)?;
        let (weight, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
        let weight = scaled_columns(weight, multiplier);
        let params = GridParams::fit(&weight, shape, &layer.grid, clipping)?;
        let Some(moments) = moments else {
            return WeightLearner::new(&weight, shape, layer.grid, params, None);
        };
        // The inputs of a weight times m are those over m.
        let moments = match multiplier.is_empty() {
            true => moments.clone(),
            false => {
                let m = Array::from_slice(multiplier, &[1, multiplier.len() as i32]);
                moments.divide(&m)?.divide(m.t())?
            }
        };
        let better =
            Compensation::default().round(layer, &weight, shape, params.clone(), &moments)?.weight_int;
        WeightLearner::new(&weight, shape, layer.grid, params, Some(&better))
    }
}

/// A row-major weight with its columns times these factors (none: as it is).
pub(in crate::rounders) fn scaled_columns(mut weight: Vec<f32>, multiplier: &[f32]) -> Vec<f32> {
    if !multiplier.is_empty() {
        weight.iter_mut().zip(multiplier.iter().cycle()).for_each(|(w, m)| *w *= m);
    }
    weight
}
