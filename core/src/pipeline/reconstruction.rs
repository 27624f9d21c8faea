//! One block's calibration data: inputs from the quantized prefix, targets from full precision.

use std::cell::RefCell;
use std::collections::HashMap;

use mlx_rs::{Array, ops, transforms};

use super::QuantizedTap;
use super::quantized::{ActivationPlan, QuantizedWeights};
use crate::{BlockIo, Error, Identity, LayerId, LayerJob, Model, Reconstruction, Result};

/// Rows in one forward pass over all rows.
const CHUNK: usize = 32;

/// Block boundaries of all rows.
#[derive(Clone)]
pub(super) struct Boundary(pub BlockIo);

impl Boundary {
    /// The given rows.
    pub fn rows(&self, rows: &[usize]) -> Result<BlockIo> {
        let index: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let index = Array::from_slice(&index, &[index.len() as i32]);
        let io = &self.0;
        Ok(BlockIo {
            hidden: io.hidden.take_axis(&index, 0)?,
            context: io.context.as_ref().map(|c| c.take_axis(&index, 0)).transpose()?,
            temb: io.temb.take_axis(&index, 0)?,
            timesteps: rows.iter().map(|&r| io.timesteps[r]).collect(),
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.0.timesteps.len()
    }

    /// All parts, one after the other, evaluated.
    pub fn concat(parts: &[BlockIo]) -> Result<Self> {
        let join = |arrays: Vec<&Array>| ops::concatenate(&arrays, 0);
        let context: Vec<&Array> = parts.iter().filter_map(|p| p.context.as_ref()).collect();
        let io = BlockIo {
            hidden: join(parts.iter().map(|p| &p.hidden).collect())?,
            context: if context.is_empty() { None } else { Some(join(context)?) },
            temb: join(parts.iter().map(|p| &p.temb).collect())?,
            timesteps: parts.iter().flat_map(|p| p.timesteps.clone()).collect(),
        };
        transforms::eval([&io.hidden, &io.temb].into_iter().chain(&io.context))?;
        Ok(Self(io))
    }

    /// The boundary after a block, in full precision or through a quantized tap.
    pub fn forward(
        &self,
        model: &dyn Model,
        block: usize,
        quantized: Option<(&ActivationPlan, &QuantizedWeights)>,
    ) -> Result<Self> {
        let all: Vec<usize> = (0..self.len()).collect();
        let mut parts = Vec::new();
        for rows in all.chunks(CHUNK) {
            let io = self.rows(rows)?;
            let out = match quantized {
                Some((plan, weights)) => {
                    block_forward(model, block, &io, &mut QuantizedTap::new(plan, weights))?
                }
                None => block_forward(model, block, &io, &mut Identity)?,
            };
            transforms::eval([&out.hidden].into_iter().chain(&out.context))?;
            parts.push(out);
        }
        Self::concat(&parts)
    }
}

fn block_forward(model: &dyn Model, block: usize, io: &BlockIo, tap: &mut dyn crate::Tap) -> Result<BlockIo> {
    tap.begin(&io.timesteps)?;
    model.block_forward(block, io, tap)
}

/// See the module's head. Rows from 0 to `learn` are learned from, the rest only judges.
pub(super) struct BlockReconstruction<'a> {
    pub model: &'a dyn Model,
    pub block: usize,
    pub plan: &'a ActivationPlan,
    pub layers: &'a [LayerJob],
    pub inputs: &'a Boundary,
    pub targets: &'a Boundary,
    pub learn: usize,
}

impl BlockReconstruction<'_> {
    /// Sum of squared errors over both streams, and the number of elements.
    fn squared_error(&self, weights: &[Array], io: &BlockIo, target: &BlockIo) -> Result<(Array, usize)> {
        let weights: HashMap<LayerId, Array> =
            self.layers.iter().zip(weights).map(|(l, w)| (l.spec.id.clone(), w.clone())).collect();
        let out = block_forward(self.model, self.block, io, &mut QuantizedTap::new(self.plan, &weights))?;
        let mut sum = ops::sum(&ops::square(&out.hidden.subtract(&target.hidden)?)?, None)?;
        let mut count = target.hidden.size();
        if let (Some(out), Some(target)) = (&out.context, &target.context) {
            sum = sum.add(ops::sum(&ops::square(&out.subtract(target)?)?, None)?)?;
            count += target.size();
        }
        Ok((sum, count))
    }
}

impl Reconstruction for BlockReconstruction<'_> {
    fn rows(&self) -> usize {
        self.learn
    }

    fn loss_and_grads(&self, weights: &[Array], rows: &[usize]) -> Result<(f32, Vec<Array>)> {
        let (io, target) = (self.inputs.rows(rows)?, self.targets.rows(rows)?);
        // The closure must return MLX's error type; ours waits here.
        let failure: RefCell<Option<Error>> = RefCell::new(None);
        let loss = |weights: &[Array]| -> mlx_rs::error::Result<Vec<Array>> {
            match self.squared_error(weights, &io, &target) {
                Ok((sum, count)) => Ok(vec![sum.multiply(Array::from_f32(1.0 / count as f32))?]),
                Err(Error::Mlx(e)) => Err(e),
                Err(e) => {
                    let what = e.to_string();
                    failure.replace(Some(e));
                    Err(mlx_rs::error::Exception::custom(what))
                }
            }
        };
        let argnums: Vec<i32> = (0..weights.len() as i32).collect();
        let result = transforms::value_and_grad_with_argnums(loss, &argnums[..])(weights);
        if let Some(e) = failure.take() {
            return Err(e);
        }
        let (value, grads) = result?;
        transforms::eval(value.iter().chain(&grads))?;
        Ok((item(&value[0])?, grads))
    }

    fn held_out_loss(&self, weights: &[Array]) -> Result<f32> {
        let rows: Vec<usize> = (self.learn..self.inputs.len()).collect();
        let (mut total, mut elements) = (0.0, 0);
        for rows in rows.chunks(CHUNK) {
            let (sum, count) =
                self.squared_error(weights, &self.inputs.rows(rows)?, &self.targets.rows(rows)?)?;
            total += f64::from(item(&sum)?);
            elements += count;
        }
        Ok((total / elements.max(1) as f64) as f32)
    }
}

fn item(scalar: &Array) -> Result<f32> {
    scalar
        .try_item_exact::<f32>()
        .map_err(|e| Error::Unsupported { what: format!("a loss is no f32 number: {e}") })
}
