//! The rounder: chooses the integers of a block's weights.

use mlx_rs::Array;

use crate::quant::{Grid, InputGrids, QDrop, QuantizedLayer};
use crate::{BlockSpec, Context, LayerSpec, Result};

/// A block's calibration data behind three questions: what arrives at its layers, how large is the error when they
/// compute with these parameters, and in which direction does it fall. Rows are calibration samples: an image at a timestep,
/// with the prompt and (under guidance) without it.
pub trait Reconstruction {
    /// Rows to learn from, numbered from 0.
    fn rows(&self) -> usize;

    /// The planned timestep of a row, a position in the arrays by timestep ([`InputGrids::scale`] and others).
    fn step(&self, row: usize) -> usize;

    /// Shows the input of every layer, `[rows × branches, tokens, in_features]` with the branches of guidance side by side, by
    /// its position in the job: what the quantized
    /// blocks before this one put out, followed in full precision within the block.
    fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()>;

    /// Mean squared error of the block's outputs over a batch when its layers compute with these parameters (one for
    /// each layer of the job, in its order), a scalar, and its gradients. All are lazy: nothing is computed until they are
    /// evaluated, so that what a rounder makes of them becomes part of the same graph.
    fn loss_and_grads(
        &self,
        layers: &[QuantizedLayer],
        batch: Batch<'_>,
    ) -> Result<(Array, Vec<LayerGradients>)>;

    /// The same error without gradients, over rows that [`Self::loss_and_grads`] never shows.
    fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32>;
}

/// Which rows a step learns from.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The rows.
    pub rows: &'a [usize],
    /// Without it, the block sees what the quantized blocks before it put out. With it, a random share of the elements
    /// of the block's input comes from the full-precision model, and of every layer's input is not quantized.
    pub drop: Option<QDrop>,
}

/// Derivatives of the error with respect to what a layer computes with.
#[derive(Debug, Clone)]
pub struct LayerGradients {
    /// With respect to [`QuantizedLayer::weight`], of its shape.
    pub weight: Array,
    /// With respect to the input's step sizes, `[steps]`; 0 for timesteps that the batch does not hold.
    pub scale: Array,
    /// With respect to [`QuantizedLayer::bias`], of its shape, if there is one.
    pub bias: Option<Array>,
}

/// One layer to be rounded.
#[derive(Debug, Clone)]
pub struct LayerJob {
    /// The layer.
    pub spec: LayerSpec,
    /// Its full-precision weight, `[out_features, in_features]`, f32.
    pub weight: Array,
    /// The grid to round to: bits, granularity, symmetric or not.
    pub grid: Grid,
    /// The plan's grids of its input.
    pub input: InputGrids,
}

/// One block to be rounded.
pub struct BlockJob<'a> {
    /// The block.
    pub block: &'a BlockSpec,
    /// Its layers, in the order of the forward pass.
    pub layers: &'a [LayerJob],
    /// Its calibration data.
    pub reconstruction: &'a dyn Reconstruction,
}

impl BlockJob<'_> {
    /// The job's layers as they compute with these integers, one of each layer.
    pub fn quantized(&self, rounded: &[RoundedLayer]) -> Result<Vec<QuantizedLayer>> {
        self.layers.iter().zip(rounded).map(|(layer, rounded)| rounded.quantized(&layer.input)).collect()
    }
}

/// The integers of one layer and what they mean: `weight ≈ (weight_int − zero_point) · scale`, where the weight's columns
/// are times the multiplier of the input if there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundedLayer {
    /// Grid that was used.
    pub grid: Grid,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Row-major `[out_features, in_features]`, each within the grid's range.
    pub weight_int: Vec<i8>,
    /// One step size per group, row-major `[out_features, groups]`; a single one on a per-tensor grid.
    pub scale: Vec<f32>,
    /// One zero point per group; all 0 on a symmetric grid.
    pub zero_point: Vec<f32>,
    /// What was learned of its input; `None`: the plan holds.
    pub learned: Option<LearnedInput>,
}

/// What a rounder learned of a layer's input, in place of the plan's step sizes, shift and multiplier. The bits remain
/// the plan's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LearnedInput {
    /// Step sizes, `[steps]`.
    pub scale: Vec<f32>,
    /// Row-major `[steps, in_features]`; empty: 0.
    pub shift: Vec<f32>,
    /// `[in_features]`; empty: 1. What the input is divided by: the integers are those of the weight with its columns times this.
    pub multiplier: Vec<f32>,
    /// What is added to the bias, row-major `[steps, out_features]`; empty: 0.
    pub bias: Vec<f32>,
}

/// A block's integers, and how learning them went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoundedBlock {
    /// One entry for each layer of the job, in its order.
    pub layers: Vec<RoundedLayer>,
    /// Training loss every [`LOSS_STRIDE`] iterations; empty if nothing was learned.
    pub losses: Vec<f32>,
}

/// Iterations between two entries of [`RoundedBlock::losses`].
pub const LOSS_STRIDE: usize = 100;

/// Chooses the integers of a block's weights.
///
/// ```
/// use taq_core::quant::{Clipping, nearest};
/// use taq_core::{BlockJob, Context, LayerJob, Result, RoundedBlock, Rounder};
///
/// /// Rounds every weight to the nearest point of its grid.
/// struct Nearest;
///
/// impl Rounder for Nearest {
///     fn round(&self, job: &BlockJob<'_>, _: &Context) -> Result<RoundedBlock> {
///         let layer = |l: &LayerJob| nearest(&l.weight, &l.grid, Clipping::Mse);
///         let layers = job.layers.iter().map(layer).collect::<Result<_>>()?;
///         Ok(RoundedBlock { layers, losses: vec![] })
///     }
/// }
/// ```
pub trait Rounder {
    /// Rounds the job's layers. The same seed in the context gives the same integers.
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock>;

    /// Units of progress that one call of [`Self::round`] reports.
    fn iterations(&self) -> u64 {
        1
    }

    /// Improves on blocks that were rounded one by one by looking at all of them at once: the job's layers are those of all
    /// blocks, in the order of the forward pass, and its error is that of the last block's output. `None` where the rounder
    /// leaves it at that; only asked if [`Self::end_to_end_iterations`] is not 0.
    fn end_to_end(
        &self,
        _job: &BlockJob<'_>,
        _rounded: Vec<RoundedLayer>,
        _cx: &Context,
    ) -> Result<Option<RoundedBlock>> {
        Ok(None)
    }

    /// Units of progress that [`Self::end_to_end`] reports.
    fn end_to_end_iterations(&self) -> u64 {
        0
    }
}
