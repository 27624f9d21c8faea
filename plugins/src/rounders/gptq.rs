//! GPTQ: rounds a weight column by column and lets the columns that are still to come make up for the error. Nothing is
//! learned; [`super::compensate`] has the algorithm.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::{Clipping, GridParams, to_matrix};
use taq_core::{BlockJob, Context, Error, LayerJob, Result, RoundedBlock, Rounder, register};

use super::compensate::{Compensation, second_moments};
use super::reconstruct::needs_rows;

/// Settings of `gptq`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GptqSettings {
    /// What is added to the diagonal of H, as a share of its mean: large values trust the calibration less.
    pub damping: f32,
    /// Whether columns go in falling order of their inputs' strength, or from left to right.
    pub act_order: bool,
    /// Where the outermost grid points go: `absmax` clips nothing, `mse` minimises the squared rounding error.
    pub clipping: Clipping,
}

impl Default for GptqSettings {
    fn default() -> Self {
        let Compensation { damping, act_order } = Compensation::default();
        Self { damping, act_order, clipping: Clipping::Mse }
    }
}

/// The rounder `gptq`.
#[derive(Debug, Clone, Copy)]
pub struct Gptq {
    settings: GptqSettings,
}

impl Gptq {
    /// A rounder with these settings; [`Error::Settings`] if one is out of range.
    pub fn new(settings: GptqSettings) -> Result<Self> {
        if !(settings.damping > 0.0 && settings.damping.is_finite()) {
            let reason = format!("damping = {}, expected a number greater than 0", settings.damping);
            return Err(Error::settings("rounder `gptq`", reason));
        }
        Ok(Self { settings })
    }
}

impl Rounder for Gptq {
    /// Fails with [`Error::NotFinite`] if a weight or an input is NaN or infinite.
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        cx.check()?;
        needs_rows("gptq", job)?;
        let GptqSettings { damping, act_order, clipping } = self.settings;
        let layer = |(layer, moments): (&LayerJob, _)| {
            cx.check()?;
            layer.grid.validate(&layer.spec)?;
            let (weight, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
            let params = GridParams::fit(&weight, shape, &layer.grid, clipping)?;
            Compensation { damping, act_order }.round(layer, &weight, shape, params, moments)
        };
        let moments = second_moments(job, cx)?;
        let layers = job.layers.iter().zip(&moments).map(layer).collect::<Result<_>>()?;
        Ok(RoundedBlock { layers, losses: Vec::new() })
    }
}

register!(
    Rounder,
    "gptq",
    GptqSettings,
    Gptq::new,
    "Rounds column by column and lets the columns still to come make up for the error (GPTQ)."
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounders::reconstruct::testing::{Planted, job};
    use crate::rounders::{AdaRound, AdaRoundSettings, Nearest, NearestSettings};
    use taq_core::Reconstruction;
    use taq_core::quant::{Granularity, Grid};

    #[test]
    fn is_better_than_nearest_and_so_is_what_is_learned_from_it() {
        for seed in 0..4 {
            let planted = Planted::new(seed, 48, 32, 128);
            let layers = planted.layers(Grid::new(3, Granularity::Channel, true).unwrap());
            let job = job(&planted, &layers);
            let error = |rounder: &dyn Rounder| {
                let block = rounder.round(&job, &Context::quiet(0)).unwrap();
                block.layers[0].validate(&layers[0].spec, 1).unwrap();
                planted.held_out_loss(&[block.layers[0].quantized(&layers[0].input).unwrap()]).unwrap()
            };
            let nearest = error(&Nearest::new(NearestSettings { clipping: Clipping::Mse }));
            let gptq = error(&Gptq::new(GptqSettings::default()).unwrap());
            let settings = AdaRoundSettings { iters: 600, lr: 0.04, batch_size: 32, ..Default::default() };
            let adaround = error(&AdaRound::new(settings).unwrap());
            assert!(gptq < 0.6 * nearest, "seed {seed}: nearest {nearest}, gptq {gptq}");
            assert!(adaround < 0.6 * nearest, "seed {seed}: nearest {nearest}, adaround {adaround}");
        }
    }

    #[test]
    fn settings_have_ranges() {
        let message = Gptq::new(GptqSettings { damping: 0.0, ..Default::default() }).unwrap_err().to_string();
        assert_eq!(message, "rounder `gptq`: damping = 0, expected a number greater than 0");
    }
}
