//! Every weight to the nearest point of its grid. Nothing is learned; this is what other rounders are measured
//! against.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::{Clipping, GridParams, round_nearest, to_matrix};
use taq_core::{BlockJob, Context, LayerJob, Result, RoundedBlock, RoundedLayer, Rounder, register};

/// Settings of `nearest`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NearestSettings {
    /// Where the outermost grid points go: `absmax` clips nothing, `mse` minimises the squared rounding error.
    pub clipping: Clipping,
}

/// The rounder `nearest`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nearest {
    settings: NearestSettings,
}

impl Nearest {
    /// A rounder with these settings.
    pub fn new(settings: NearestSettings) -> Self {
        Self { settings }
    }
}

impl Rounder for Nearest {
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        let layer = |layer: &LayerJob| -> Result<RoundedLayer> {
            cx.check()?;
            layer.grid.validate(&layer.spec)?;
            let (values, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
            let params = GridParams::fit(&values, shape, &layer.grid, self.settings.clipping)?;
            round_nearest(&values, shape, &layer.grid, params)
        };
        Ok(RoundedBlock { layers: job.layers.iter().map(layer).collect::<Result<_>>()?, losses: Vec::new() })
    }
}

register!(
    Rounder,
    "nearest",
    NearestSettings,
    |settings| Ok(Nearest::new(settings)),
    "Rounds every weight to the nearest point of its grid; learns nothing."
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounders::reconstruct::testing::{Planted, job};
    use taq_core::Error;
    use taq_core::mlx_rs::Array;
    use taq_core::quant::{Granularity, Grid};

    #[test]
    fn clipping_by_squared_error_is_nearer_to_the_weights() {
        let planted = Planted::new(1, 24, 16, 8);
        let grid = Grid::new(3, Granularity::Channel, true).unwrap();
        let error = |clipping| {
            let layers = [planted.layer(grid)];
            let block = Nearest::new(NearestSettings { clipping })
                .round(&job(&planted, &layers), &Context::quiet(0))
                .unwrap();
            assert!(block.losses.is_empty());
            block.layers[0].validate(&layers[0].spec, 1).unwrap();
            let off = block.layers[0].values();
            off.iter().zip(planted.weight()).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        assert!(error(Clipping::Mse) < 0.95 * error(Clipping::Absmax));
    }

    #[test]
    fn a_weight_that_is_not_finite_names_its_layer() {
        let planted = Planted::new(1, 4, 3, 8);
        let mut layers = [planted.layer(Grid::new(4, Granularity::Channel, true).unwrap())];
        layers[0].weight = Array::from_slice(&[f32::NAN; 12], &[3, 4]);
        let error = Nearest::default().round(&job(&planted, &layers), &Context::quiet(0)).unwrap_err();
        assert_eq!(error.to_string(), "weight of layer `planted.0` holds NaN or infinite values");
        assert!(matches!(error, Error::NotFinite { .. }));
    }
}
