//! A reconstruction problem whose error and gradient are known in closed form.

use mlx_rs::Array;
use taq_core::quant::Grid;
use taq_core::{BlockJob, BlockSpec, LayerJob, LayerSpec, Reconstruction, Result, Role, Stream};

/// Rows that a problem holds back.
const HELD_OUT: usize = 32;
/// Tokens in a row.
const TOKENS: usize = 4;

/// Linear layers side by side on one correlated input: the output is the sum of theirs, and its error is
/// D · (mean of xxᵀ) · Dᵀ for D = Σ (Ŵ − W).
pub(in crate::rounders) struct Planted {
    inputs: usize,
    outputs: usize,
    weights: Vec<Vec<f32>>,
    /// Mean of xxᵀ over the tokens of a row, for each row; the last [`HELD_OUT`] are held out.
    second_moments: Vec<Vec<f32>>,
    block: BlockSpec,
}

impl Planted {
    /// One layer `[outputs, inputs]` and `rows` rows to learn from.
    pub(in crate::rounders) fn new(seed: u32, inputs: usize, outputs: usize, rows: usize) -> Self {
        Self::with_layers(seed, inputs, outputs, rows, 1)
    }

    /// Several layers.
    pub(in crate::rounders) fn with_layers(
        seed: u32,
        inputs: usize,
        outputs: usize,
        rows: usize,
        layers: usize,
    ) -> Self {
        let mut rng = rand_mt::Mt::new(seed);
        let mut normal = || {
            let sum: f64 = (0..12).map(|_| f64::from(rng.next_u32()) / 4_294_967_296.0).sum();
            (sum - 6.0) as f32
        };
        let weights = (0..layers).map(|_| (0..inputs * outputs).map(|_| 0.1 * normal()).collect()).collect();
        // A few strong directions and a weak rest, with an offset, as activations have.
        let rank = inputs.div_ceil(4);
        let mixing: Vec<f32> = (0..rank * inputs).map(|_| normal()).collect();
        let offset: Vec<f32> = (0..inputs).map(|_| 0.5 * normal()).collect();
        let second_moments = (0..rows + HELD_OUT)
            .map(|_| {
                let mut moment = vec![0.0; inputs * inputs];
                for _ in 0..TOKENS {
                    let factors: Vec<f32> = (0..rank).map(|_| normal()).collect();
                    let x: Vec<f32> = (0..inputs)
                        .map(|i| {
                            let strong: f32 =
                                factors.iter().enumerate().map(|(k, f)| f * mixing[k * inputs + i]).sum();
                            strong / (rank as f32).sqrt() + offset[i] + 0.2 * normal()
                        })
                        .collect();
                    for (i, a) in x.iter().enumerate() {
                        for (j, b) in x.iter().enumerate() {
                            moment[i * inputs + j] += a * b / TOKENS as f32;
                        }
                    }
                }
                moment
            })
            .collect();
        let spec = |i| LayerSpec {
            id: format!("planted.{i}").as_str().into(),
            block: "planted".into(),
            stream: Stream::Image,
            role: Role::Q,
            in_features: inputs,
            out_features: outputs,
            post_gelu: false,
        };
        let block = BlockSpec { id: "planted".into(), layers: (0..layers).map(spec).collect() };
        Self { inputs, outputs, weights, second_moments, block }
    }

    /// The same inputs for another first layer.
    pub(in crate::rounders) fn with_weight(mut self, weight: &[f32]) -> Self {
        weight.clone_into(&mut self.weights[0]);
        self
    }

    /// The first layer's weight, row-major.
    pub(in crate::rounders) fn weight(&self) -> &[f32] {
        &self.weights[0]
    }

    /// The job of the first layer.
    pub(in crate::rounders) fn layer(&self, grid: Grid) -> LayerJob {
        self.layers(grid).swap_remove(0)
    }

    /// The jobs of all layers.
    pub(in crate::rounders) fn layers(&self, grid: Grid) -> Vec<LayerJob> {
        let shape = [self.outputs as i32, self.inputs as i32];
        let job = |(spec, w): (&LayerSpec, &Vec<f32>)| LayerJob {
            spec: spec.clone(),
            weight: Array::from_slice(w, &shape),
            grid,
        };
        self.block.layers.iter().zip(&self.weights).map(job).collect()
    }

    /// Error with these weights over the given second moments, and its gradient with respect to D.
    fn error<'a>(&self, weights: &[Array], moments: impl Iterator<Item = &'a Vec<f32>>) -> (f32, Vec<f32>) {
        let n = self.inputs;
        let mut mean = vec![0.0_f32; n * n];
        let mut count = 0.0;
        for moment in moments {
            count += 1.0;
            mean.iter_mut().zip(moment).for_each(|(a, b)| *a += b);
        }
        let mut difference = vec![0.0_f32; self.outputs * n];
        for (weight, exact) in weights.iter().zip(&self.weights) {
            let weight = weight.as_slice::<f32>();
            difference.iter_mut().zip(weight.iter().zip(exact)).for_each(|(d, (a, b))| *d += a - b);
        }
        let scale = 1.0 / (count * self.outputs as f32);
        let mut gradient = vec![0.0; self.outputs * n];
        for (gradient, d) in gradient.chunks_mut(n).zip(difference.chunks(n)) {
            for (d, row) in d.iter().zip(mean.chunks(n)) {
                gradient.iter_mut().zip(row).for_each(|(g, m)| *g += 2.0 * scale * d * m);
            }
        }
        let error = difference.iter().zip(&gradient).map(|(d, g)| f64::from(d * g) / 2.0).sum::<f64>();
        (error as f32, gradient)
    }
}

impl Reconstruction for Planted {
    fn rows(&self) -> usize {
        self.second_moments.len() - HELD_OUT
    }

    fn loss_and_grads(&self, weights: &[Array], rows: &[usize]) -> Result<(f32, Vec<Array>)> {
        assert!(rows.iter().all(|r| *r < self.rows()));
        let (loss, gradient) = self.error(weights, rows.iter().map(|r| &self.second_moments[*r]));
        let gradient = Array::from_slice(&gradient, &[self.outputs as i32, self.inputs as i32]);
        Ok((loss, vec![gradient; weights.len()]))
    }

    fn held_out_loss(&self, weights: &[Array]) -> Result<f32> {
        Ok(self.error(weights, self.second_moments[self.rows()..].iter()).0)
    }
}

/// The job of rounding the layers of a problem.
pub(in crate::rounders) fn job<'a>(planted: &'a Planted, layers: &'a [LayerJob]) -> BlockJob<'a> {
    BlockJob { block: &planted.block, layers, reconstruction: planted }
}
