//! Measured substitution: the model is run with one layer quantized, from that layer's block on.

use mlx_rs::Array;

use super::rows::{Rows, Squares};
use super::substitute::{Substitute, SubstituteTap};
use crate::pipeline::boundary::{Boundary, CHUNK, block_forward};
use crate::{BlockIo, Identity, LayerId, Model, Result, Tap};

/// The full-precision model's outputs, which errors are measured against.
pub(super) struct Measure<'a> {
    model: &'a dyn Model,
    rows: &'a Rows,
    /// Velocities of each chunk of rows, `[rows, h, w, channels]`.
    outputs: Vec<Array>,
}

impl<'a> Measure<'a> {
    /// Runs the full-precision model on what its first block sees.
    pub fn new(model: &'a dyn Model, rows: &'a Rows, embedded: &Boundary) -> Result<Self> {
        let mut measure = Self { model, rows, outputs: Vec::new() };
        for chunk in measure.chunks() {
            let velocity = measure.velocity(0, embedded.rows(&chunk)?, &mut Identity)?;
            velocity.eval()?;
            measure.outputs.push(velocity);
        }
        Ok(measure)
    }

    /// Sums of squares of the outputs.
    pub fn signal(&self) -> Result<Squares> {
        let mut sums = Squares::zero(self.rows);
        for (chunk, output) in self.chunks().iter().zip(&self.outputs) {
            self.rows.add(&mut sums, chunk, output, 1.0)?;
        }
        Ok(sums)
    }

    /// Sums of squared errors with a layer of this block substituted; `inputs` go into the block.
    pub fn errors(
        &self,
        block: usize,
        inputs: &Boundary,
        layer: &LayerId,
        substitute: &Substitute<'_>,
    ) -> Result<Squares> {
        let mut sums = Squares::zero(self.rows);
        for (chunk, output) in self.chunks().iter().zip(&self.outputs) {
            let mut tap = SubstituteTap::new(layer, substitute);
            let velocity = self.velocity(block, inputs.rows(chunk)?, &mut tap)?;
            self.rows.add(&mut sums, chunk, &velocity.subtract(output)?, 1.0)?;
        }
        Ok(sums)
    }

    fn chunks(&self) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        all.chunks(CHUNK).map(<[usize]>::to_vec).collect()
    }

    /// From what goes into a block to the velocity.
    fn velocity(&self, block: usize, mut io: BlockIo, tap: &mut dyn Tap) -> Result<Array> {
        for block in block..self.model.spec().blocks.len() {
            io = block_forward(self.model, block, &io, tap)?;
        }
        self.model.unembed(&io, self.rows.latent, &mut Identity)
    }
}
