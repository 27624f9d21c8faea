//! A block of one's own making, small enough for plain loops: linear layers side by side on one input.

use taq_policy::testing::{Random, layer};
use taq_policy::{LayerSpec, Role};

use crate::host::LayerData;
use crate::{Grid, LayerValues, RoundedLayer};

/// Rows of the input that only judge.
const HELD_OUT: usize = 8;
/// Tokens of a row.
const TOKENS: usize = 2;

/// Room for one layer's derivatives.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Of the weight's shape.
    pub weight: Vec<f32>,
    /// One for each timestep.
    pub input_scale: Vec<f32>,
}

/// Layers that read the same input; the block's output is the sum of theirs.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The layers, all of one shape.
    pub layers: Vec<LayerData>,
    /// Rows to learn from. Each has two tokens, and its planned timestep is its number modulo the timesteps.
    pub rows: usize,
    /// Row-major `[rows + held out, 2, in_features]`.
    pub inputs: Vec<f32>,
}

impl Problem {
    /// A problem: `count` layers `[outputs, inputs]` on a grid, with `rows` rows and two timesteps.
    pub fn new(seed: u64, [outputs, inputs]: [usize; 2], grid: Grid, rows: usize, count: usize) -> Self {
        let mut random = Random::new(seed);
        // Sums of uniform numbers, as good as normal ones.
        let mut normal = || (0..6).map(|_| random.between(-1.0, 1.0)).sum::<f32>() / 1.4;
        let weights: Vec<Vec<f32>> =
            (0..count).map(|_| (0..outputs * inputs).map(|_| 0.1 * normal()).collect()).collect();
        // Channels that go together, as activations have: rounding one by one is not best.
        let rank = inputs.div_ceil(4);
        let mixing: Vec<f32> = (0..rank * inputs).map(|_| normal()).collect();
        let mut x = Vec::with_capacity((rows + HELD_OUT) * TOKENS * inputs);
        for _ in 0..(rows + HELD_OUT) * TOKENS {
            let factors: Vec<f32> = (0..rank).map(|_| normal()).collect();
            x.extend((0..inputs).map(|i| {
                let strong: f32 = factors.iter().enumerate().map(|(k, f)| f * mixing[k * inputs + i]).sum();
                strong / (rank as f32).sqrt() + 0.3 * normal()
            }));
        }
        let mut problem = Self { layers: Vec::new(), rows, inputs: x };
        let absmax = problem.inputs.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for (at, weight) in weights.into_iter().enumerate() {
            let spec = layer(&format!("block.img.attn.q{at}"), Role::Q, inputs, outputs);
            problem.layers.push(layer_data(spec, weight, grid, absmax));
        }
        problem
    }

    /// The same with another weight of the first layer.
    pub fn with_weight(mut self, weight: Vec<f32>) -> Self {
        let first = &self.layers[0];
        let absmax = first.input_scale[0] * 127.0;
        self.layers[0] = layer_data(first.spec.clone(), weight, first.grid, absmax);
        self
    }

    /// The grid of a weight of this shape: so many neighbours share a step size.
    pub fn grid([outputs, inputs]: [usize; 2], bits: u8, symmetric: bool, group_len: usize) -> Grid {
        Grid { bits, symmetric, group_len, groups: outputs * inputs / group_len }
    }

    /// Values of a token.
    pub fn width(&self) -> usize {
        self.layers[0].spec.in_features
    }

    /// The planned timestep of a row.
    pub fn step(&self, row: usize) -> usize {
        row % self.layers[0].input_scale.len()
    }

    /// The tokens of some rows, row-major.
    pub fn tokens(&self, rows: &[usize]) -> Vec<f32> {
        let size = TOKENS * self.width();
        rows.iter().flat_map(|r| &self.inputs[r * size..(r + 1) * size]).copied().collect()
    }

    /// What the first layer's weight makes of rows to learn from: inputs, targets, timesteps.
    pub fn rows_of(&self, layer: usize) -> (Vec<f32>, Vec<f32>, Vec<u32>) {
        let rows: Vec<usize> = (0..self.rows).collect();
        let inputs = self.tokens(&rows);
        let targets = product(&inputs, &self.layers[layer].weight, self.width());
        let steps = rows.iter().flat_map(|r| [self.step(*r) as u32; TOKENS]).collect();
        (inputs, targets, steps)
    }

    /// Mean squared error of the output over rows, and its derivatives if there is room for them. Inputs are on their grids:
    /// the derivative of a step size is that of LSQ (Esser et al., arXiv 1902.08153).
    pub fn loss(
        &self,
        values: &[LayerValues<'_>],
        rows: &[usize],
        gradients: Option<&mut [Gradients]>,
    ) -> f32 {
        let (width, outputs) = (self.width(), self.layers[0].spec.out_features);
        let x = self.tokens(rows);
        let tokens = rows.len() * TOKENS;
        let mut errors = vec![0.0_f32; tokens * outputs];
        let mut rounded = Vec::new();
        for (layer, values) in self.layers.iter().zip(values) {
            let scale = values.input_scale.unwrap_or(&layer.input_scale);
            let on_grid: Vec<f32> = x
                .chunks(width)
                .enumerate()
                .flat_map(|(token, x)| {
                    let s = scale[self.step(rows[token / TOKENS])];
                    x.iter().map(move |v| (v / s).clamp(-128.0, 127.0).round_ties_even() * s)
                })
                .collect();
            let with = product(&on_grid, values.weight, width);
            let without = product(&x, &layer.weight, width);
            for (error, (a, b)) in errors.iter_mut().zip(with.iter().zip(without)) {
                *error += a - b;
            }
            rounded.push(on_grid);
        }
        let count = errors.len() as f32;
        let loss = errors.iter().map(|e| e * e).sum::<f32>() / count;
        let Some(gradients) = gradients else { return loss };
        for (at, (gradient, values)) in gradients.iter_mut().zip(values).enumerate() {
            gradient.weight.fill(0.0);
            gradient.input_scale.fill(0.0);
            let scale = values.input_scale.unwrap_or(&self.layers[at].input_scale);
            for token in 0..tokens {
                let error = &errors[token * outputs..(token + 1) * outputs];
                let xq = &rounded[at][token * width..(token + 1) * width];
                for (o, e) in error.iter().enumerate() {
                    let row = &mut gradient.weight[o * width..(o + 1) * width];
                    row.iter_mut().zip(xq).for_each(|(g, x)| *g += 2.0 / count * e * x);
                }
                let step = self.step(rows[token / TOKENS]);
                for i in 0..width {
                    let back: f32 =
                        error.iter().enumerate().map(|(o, e)| e * values.weight[o * width + i]).sum();
                    let v = x[token * width + i] / scale[step];
                    let slope = match v {
                        v if v <= -128.0 => -128.0,
                        v if v >= 127.0 => 127.0,
                        v => v.round_ties_even() - v,
                    };
                    gradient.input_scale[step] += 2.0 / count * back * slope;
                }
            }
        }
        loss
    }

    /// Room for the derivatives of all layers.
    pub fn gradients(&self) -> Vec<Gradients> {
        let room = |l: &LayerData| Gradients {
            weight: vec![0.0; l.weight.len()],
            input_scale: vec![0.0; l.input_scale.len()],
        };
        self.layers.iter().map(room).collect()
    }

    /// The error over rows that nobody learns from.
    pub fn held_out(&self, values: &[LayerValues<'_>]) -> f32 {
        let rows: Vec<usize> = (self.rows..self.rows + HELD_OUT).collect();
        self.loss(values, &rows, None)
    }

    /// The same of integers.
    pub fn held_out_of(&self, rounded: &[RoundedLayer]) -> f32 {
        let weights: Vec<Vec<f32>> =
            self.layers.iter().zip(rounded).map(|(l, r)| r.values(&l.grid)).collect();
        let value = |(weight, r): (&Vec<f32>, &RoundedLayer)| (weight.clone(), r.input_scale.clone());
        let owned: Vec<_> = weights.iter().zip(rounded).map(value).collect();
        let values: Vec<_> = owned
            .iter()
            .map(|(weight, scale)| LayerValues { weight, input_scale: scale.as_deref() })
            .collect();
        self.held_out(&values)
    }
}

fn layer_data(spec: LayerSpec, weight: Vec<f32>, grid: Grid, absmax: f32) -> LayerData {
    let (start_scale, start_zero_point) = fit(&weight, &grid);
    let input_scale = vec![absmax.max(1e-6) / 127.0; 2];
    LayerData { spec, weight, grid, input_bits: vec![8; 2], input_scale, start_scale, start_zero_point }
}

/// Step sizes and zero points that clip nothing.
fn fit(weight: &[f32], grid: &Grid) -> (Vec<f32>, Vec<f32>) {
    let (qmin, qmax) = (f32::from(grid.qmin()), f32::from(grid.qmax()));
    let group = |group: &[f32]| {
        let low = group.iter().fold(0.0_f32, |a, v| a.min(*v));
        let high = group.iter().fold(0.0_f32, |a, v| a.max(*v));
        if grid.symmetric {
            ((high.max(-low) / qmax).max(f32::MIN_POSITIVE * 1e3), 0.0)
        } else {
            let scale = ((high - low) / (qmax - qmin)).max(f32::MIN_POSITIVE * 1e3);
            (scale, qmin - low / scale)
        }
    };
    weight.chunks(grid.group_len).map(group).unzip()
}

/// `x · weightᵀ`, row-major.
fn product(x: &[f32], weight: &[f32], width: usize) -> Vec<f32> {
    let row = |x: &[f32]| -> Vec<f32> {
        weight.chunks(width).map(|w| x.iter().zip(w).map(|(a, b)| a * b).sum()).collect()
    };
    x.chunks(width).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_of_weights_are_those_of_differences() {
        let grid = Problem::grid([3, 8], 4, false, 8);
        let problem = Problem::new(1, [3, 8], grid, 6, 2);
        let weights: Vec<Vec<f32>> =
            problem.layers.iter().map(|l| l.weight.iter().map(|w| w * 0.9).collect()).collect();
        let at = |weights: &[Vec<f32>]| {
            let values: Vec<_> =
                weights.iter().map(|w| LayerValues { weight: w, input_scale: None }).collect();
            problem.loss(&values, &[0, 3, 5], None)
        };
        let mut gradients = problem.gradients();
        let values: Vec<_> = weights.iter().map(|w| LayerValues { weight: w, input_scale: None }).collect();
        problem.loss(&values, &[0, 3, 5], Some(&mut gradients));
        for layer in 0..2 {
            for i in [0, 7, 13, 23] {
                // The loss is quadratic: a difference of any width is exact but for rounding.
                let mut moved = weights.clone();
                moved[layer][i] += 0.5;
                let up = at(&moved);
                moved[layer][i] -= 1.0;
                let difference = up - at(&moved);
                let ours = gradients[layer].weight[i];
                assert!((difference - ours).abs() < 1e-3 * (1.0 + ours.abs()), "{difference} {ours}");
            }
        }
        assert!(gradients[0].input_scale.iter().all(|g| *g != 0.0), "{gradients:?}");
    }

    #[test]
    fn start_grids_clip_nothing() {
        for symmetric in [true, false] {
            let grid = Problem::grid([4, 8], 3, symmetric, 4);
            let problem = Problem::new(2, [4, 8], grid, 4, 1);
            let layer = &problem.layers[0];
            for (i, w) in layer.weight.iter().enumerate() {
                let (s, z) = (layer.start_scale[i / 4], layer.start_zero_point[i / 4]);
                let q = grid.integer(*w, s, z);
                assert!(((f32::from(q) - z) * s - w).abs() <= 0.501 * s, "{symmetric} {i}");
            }
        }
    }
}
