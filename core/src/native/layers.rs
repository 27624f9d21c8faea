//! Layers as a library sees them: their numbers in host memory, and rows to learn from.

use mlx_rs::Array;
use taq_plugin::Grid;
use taq_plugin::host::{LayerData, Room};

use crate::quant::{Clipping, GridParams, to_matrix, to_vec};
use crate::{BlockJob, Context, LayerJob, Result};

/// Rows that a rounder of layers learns from, about: tokens spread evenly over images and timesteps.
pub const LAYER_ROWS: usize = 4096;
/// Images at timesteps that they are taken from.
const SAMPLES: usize = 64;
/// Of those, in one forward pass.
const CHUNK: usize = 8;

/// A layer's numbers, and room for its integers.
///
/// # Errors
/// [`crate::Error::NotFinite`] with the layer.
pub(super) fn room(job: &LayerJob) -> Result<Room> {
    job.grid.validate(&job.spec)?;
    let (weight, shape) = to_matrix(&format!("weight of layer `{}`", job.spec.id), &job.weight)?;
    let layout = job.grid.layout(shape)?;
    let start = GridParams::fit(&weight, shape, &job.grid, Clipping::Mse)?;
    Ok(Room::new(LayerData {
        spec: job.spec.clone(),
        weight,
        grid: Grid {
            bits: job.grid.bits,
            symmetric: job.grid.symmetric,
            group_len: layout.group_len,
            groups: layout.groups,
        },
        input_bits: job.input.bits.clone(),
        input_scale: to_vec(&job.input.scale)?,
        start_scale: start.scale,
        start_zero_point: start.zero_point,
    }))
}

/// What one layer learns from.
#[derive(Default)]
pub(super) struct Rows {
    /// Row-major `[rows, in_features]`.
    pub inputs: Vec<f32>,
    /// The planned timestep of each row.
    pub steps: Vec<u32>,
}

impl Rows {
    /// What the weight makes of them, row-major `[rows, out_features]`.
    pub(super) fn targets(&self, layer: &LayerJob) -> Result<Vec<f32>> {
        if self.steps.is_empty() {
            return Ok(Vec::new());
        }
        let shape = [self.steps.len() as i32, layer.spec.in_features as i32];
        to_vec(&Array::from_slice(&self.inputs, &shape).matmul(layer.weight.t())?)
    }
}

/// About [`LAYER_ROWS`] rows of every layer of a job, spread evenly.
pub(super) fn rows(job: &BlockJob<'_>, cx: &Context) -> Result<Vec<Rows>> {
    let mut rows: Vec<Rows> = job.layers.iter().map(|_| Rows::default()).collect();
    let samples = spread(job.reconstruction.rows(), SAMPLES);
    let each = LAYER_ROWS.div_ceil(samples.len().max(1));
    for chunk in samples.chunks(CHUNK) {
        cx.check()?;
        job.reconstruction.inputs(chunk, &mut |layer, x| {
            let columns = job.layers[layer].spec.in_features;
            let values = to_vec(x)?;
            // Both branches of guidance count as one sample's tokens.
            let of_sample = values.len() / chunk.len();
            for (&sample, tokens) in chunk.iter().zip(values.chunks(of_sample.max(1))) {
                let step = job.reconstruction.step(sample) as u32;
                for token in spread(tokens.len() / columns, each) {
                    rows[layer].inputs.extend(&tokens[token * columns..(token + 1) * columns]);
                    rows[layer].steps.push(step);
                }
            }
            Ok(())
        })?;
    }
    Ok(rows)
}

/// At most so many of `count` things, at equal distances.
fn spread(count: usize, most: usize) -> Vec<usize> {
    let kept = count.min(most);
    (0..kept).map(|i| i * count / kept).collect()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn few_of_many_lie_at_equal_distances() {
        assert_eq!(spread(3, 8), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(0, 4), Vec::<usize>::new());
    }
}
