//! The rounder: chooses the integers of a block's weights.

use mlx_rs::Array;

use crate::quant::Grid;
use crate::{BlockSpec, Context, LayerSpec, Result};

/// A block's calibration data behind two questions: how large is the error with these weights, and where does
/// it fall. Rows are calibration samples (an image at a timestep).
pub trait Reconstruction {
    /// Rows to learn from, numbered from 0.
    fn rows(&self) -> usize;

    /// Mean squared error of the block's outputs over the given rows when its layers have the given weights
    /// (one per layer of the job, in its order, each `[out_features, in_features]`), and its gradient with
    /// respect to each of them.
    fn loss_and_grads(&self, weights: &[Array], rows: &[usize]) -> Result<(f32, Vec<Array>)>;

    /// The same error without gradients, over rows that [`Self::loss_and_grads`] never shows.
    fn held_out_loss(&self, weights: &[Array]) -> Result<f32>;
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

/// The integers of one layer and what they mean: `weight ≈ (weight_int − zero_point) · scale`.
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
    pub zero_point: Vec<i8>,
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
/// use taq_core::{BlockJob, Context, Result, RoundedBlock, Rounder, quant};
///
/// /// Rounds every weight to the nearest point of its grid.
/// struct Nearest;
///
/// impl Rounder for Nearest {
///     fn round(&self, job: &BlockJob<'_>, _: &Context) -> Result<RoundedBlock> {
///         let layers = job.layers.iter().map(|l| quant::nearest(&l.weight, &l.grid)).collect::<Result<_>>()?;
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
}
