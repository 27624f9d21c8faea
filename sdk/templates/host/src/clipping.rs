//! The rounder `loss-aware-clipping`: rounds to nearest on grids that are clipped where the block's output suffers least.
//!
//! One layer after the other tries a few narrower grids and keeps the one with which the whole block's error is
//! smallest, several times round: coordinate descent on the step sizes, as in LAPQ (Nahshan et al., “Loss aware
//! post-training quantization”, 2021) after its first phase. Change [`LossAwareClipping::round`] to have a method of your own.

use serde::{Deserialize, Serialize};
use taq_core::quant::{Clipping, GridParams, round_nearest, to_matrix};
use taq_core::{
    Batch, BlockJob, Context, Error, LayerJob, Result, RoundedBlock, RoundedLayer, Rounder, register,
};

/// Settings, as in `rounder = { name = "loss-aware-clipping", turns = 1 }`. Their comments are shown by
/// `plugins show loss-aware-clipping`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Shares of the widest grid's step size to try, above 0 and up to 1.
    pub shares: Vec<f32>,
    /// How often all layers have their turn, at least once.
    #[schemars(range(min = 1))]
    pub turns: usize,
    /// Calibration rows on which blocks are compared, at least one.
    #[schemars(range(min = 1))]
    pub rows: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shares: vec![1.0, 0.9, 0.8, 0.7, 0.6], turns: 1, rows: 32 }
    }
}

/// The rounder.
pub struct LossAwareClipping {
    settings: Settings,
}

impl LossAwareClipping {
    /// A rounder with these settings, if they make sense.
    pub fn new(settings: Settings) -> Result<Self> {
        let wrong = |reason: &str| Err(Error::settings("rounder `loss-aware-clipping`", reason));
        if settings.shares.is_empty() || !settings.shares.iter().all(|s| *s > 0.0 && *s <= 1.0) {
            return wrong("shares must be one or more numbers above 0 and up to 1");
        }
        if settings.turns == 0 || settings.rows == 0 {
            return wrong("turns and rows must be at least 1");
        }
        Ok(Self { settings })
    }
}

impl Rounder for LossAwareClipping {
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        let rows: Vec<usize> = (0..job.reconstruction.rows().min(self.settings.rows)).collect();
        let error = |layers: &[RoundedLayer]| -> Result<f32> {
            let batch = Batch { rows: &rows, drop: None };
            // Nothing is computed before it is asked for: the gradients, which nobody asks for here, never are.
            let (error, _) = job.reconstruction.loss_and_grads(&job.quantized(layers)?, batch)?;
            error.try_item_exact::<f32>().map_err(|e| Error::settings(format!("block `{}`", job.block.id), e))
        };
        let start = |layer: &LayerJob| clipped(layer, 1.0);
        let mut best: Vec<RoundedLayer> = job.layers.iter().map(start).collect::<Result<_>>()?;
        let mut least = error(&best)?;
        for _ in 0..self.settings.turns {
            for (at, layer) in job.layers.iter().enumerate() {
                cx.check()?; // Ctrl-C
                for &share in &self.settings.shares {
                    let before = std::mem::replace(&mut best[at], clipped(layer, share)?);
                    let found = error(&best)?;
                    if found < least {
                        least = found;
                    } else {
                        best[at] = before;
                    }
                }
            }
            cx.progress.advance(1, &format!("{}: error {least:.3e}", job.block.id));
        }
        Ok(RoundedBlock { layers: best, losses: Vec::new() })
    }

    fn iterations(&self) -> u64 {
        self.settings.turns as u64
    }
}

/// The layer rounded to nearest, with so large a share of the step sizes that clip nothing.
fn clipped(layer: &LayerJob, share: f32) -> Result<RoundedLayer> {
    let (weight, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
    let mut params = GridParams::fit(&weight, shape, &layer.grid, Clipping::Absmax)?;
    params.scale.iter_mut().for_each(|scale| *scale *= share);
    round_nearest(&weight, shape, &layer.grid, params)
}

register!(
    Rounder,
    "loss-aware-clipping",
    Settings,
    LossAwareClipping::new,
    "Rounds to nearest on grids clipped where the block's output suffers least."
);

#[cfg(test)]
mod tests {
    use super::*;
    use taq_core::mlx_rs::Array;
    use taq_core::quant::{Granularity, Grid, InputGrids, QuantizedLayer};
    use taq_core::{BlockSpec, LayerGradients, LayerSpec, Reconstruction, Role, Stream};

    /// A block of one layer with two outputs, of whose four inputs the last is always 0. Its error is that of
    /// the outputs for inputs of 1.
    struct Block;

    const WEIGHT: [f32; 8] = [0.1, 0.2, -0.3, 4.0, -0.3, 0.1, 0.2, -4.0];

    fn error(layer: &QuantizedLayer) -> Result<Array> {
        let difference = layer.weight.subtract(Array::from_slice(&WEIGHT, &[2, 4]))?;
        Ok(difference.multiply(Array::from_slice(&[1.0_f32, 1.0, 1.0, 0.0], &[4]))?.square()?.mean(None)?)
    }

    impl Reconstruction for Block {
        fn rows(&self) -> usize {
            1
        }
        fn step(&self, _: usize) -> usize {
            0
        }
        fn inputs(&self, _: &[usize], _: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
            Ok(())
        }
        fn loss_and_grads(
            &self,
            layers: &[QuantizedLayer],
            _: Batch<'_>,
        ) -> Result<(Array, Vec<LayerGradients>)> {
            Ok((error(&layers[0])?, Vec::new()))
        }
        fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
            Ok(error(&layers[0])?.item_exact::<f32>())
        }
    }

    fn layer() -> LayerJob {
        let spec = LayerSpec {
            id: "block.q".into(),
            block: "block".into(),
            stream: Stream::Image,
            role: Role::Q,
            in_features: 4,
            out_features: 2,
            post_gelu: false,
        };
        let input = InputGrids::new(vec![8], &[0.1]).unwrap();
        LayerJob {
            spec,
            weight: Array::from_slice(&WEIGHT, &[2, 4]),
            grid: Grid::new(4, Granularity::Channel, true).unwrap(),
            input,
        }
    }

    fn round(settings: Settings) -> Result<f32> {
        let block = BlockSpec { id: "block".into(), layers: vec![layer().spec] };
        let job = BlockJob { block: &block, layers: &[layer()], reconstruction: &Block };
        let rounded = LossAwareClipping::new(settings)?.round(&job, &Context::quiet(0))?;
        Block.held_out_loss(&job.quantized(&rounded.layers)?)
    }

    #[test]
    fn a_weight_that_nobody_uses_is_clipped() {
        let settings = |shares: &[f32]| Settings { shares: shares.to_vec(), ..Settings::default() };
        let widest = round(settings(&[1.0])).unwrap();
        let chosen = round(settings(&[1.0, 0.5, 0.25, 0.1])).unwrap();
        assert!(chosen < 0.1 * widest, "{chosen} of {widest}");
    }

    #[test]
    fn settings_are_checked() {
        for (settings, reason) in [
            (Settings { shares: vec![1.5], ..Settings::default() }, "above 0 and up to 1"),
            (Settings { turns: 0, ..Settings::default() }, "at least 1"),
        ] {
            assert!(round(settings).unwrap_err().to_string().contains(reason));
        }
    }
}
