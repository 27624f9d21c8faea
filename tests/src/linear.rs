//! One linear layer to be rounded, with a known distribution of its input: what benchmarks of rounders learn from.

use mlx_rs::{Array, ops, random, transforms};
use taq_core::quant::{Grid, InputGrids, QuantizedLayer};
use taq_core::{Batch, BlockSpec, LayerGradients, LayerJob, LayerSpec, Reconstruction, Result, Role, Stream};

/// y = x Wᵀ; the input is not quantized. Its covariance has a decaying spectrum, λ_k ∝ 1/k, in a random basis.
pub struct Linear {
    x: Array,
    y: Array,
    held_out: Array,
    weight: Array,
}

impl Linear {
    /// A layer `[outputs, inputs]` with `rows` rows to learn from, and as many that are held out.
    pub fn new(outputs: i32, inputs: i32, rows: i32) -> Result<Self> {
        let key = random::key;
        let basis = random::normal::<f32>(&[inputs, inputs], None, None, &key(1)?)?;
        let spectrum: Vec<f32> = (1..=inputs).map(|k| 1.0 / (k as f32).sqrt()).collect();
        let spectrum = Array::from_slice(&spectrum, &[1, inputs]);
        let of = |seed| -> Result<Array> {
            let z = random::normal::<f32>(&[rows, inputs], None, None, &key(seed)?)?;
            Ok(z.multiply(&spectrum)?.matmul(&basis)?)
        };
        let weight = random::normal::<f32>(&[outputs, inputs], None, Some(0.02), &key(4)?)?;
        let (x, held_out) = (of(2)?, of(3)?);
        let y = x.matmul(weight.t())?;
        transforms::eval([&x, &y, &held_out, &weight])?;
        Ok(Self { x, y, held_out, weight })
    }

    /// The layer as a job, W4 per row, and the block that it is.
    pub fn job(&self) -> Result<(BlockSpec, [LayerJob; 1])> {
        let spec = LayerSpec {
            id: "linear".into(),
            block: "linear".into(),
            stream: Stream::Image,
            role: Role::Q,
            in_features: self.weight.dim(1) as usize,
            out_features: self.weight.dim(0) as usize,
            post_gelu: false,
        };
        let block = BlockSpec { id: "linear".into(), layers: vec![spec.clone()] };
        let (grid, input) = (Grid::channel(4)?, InputGrids::new(vec![8], &[1.0])?);
        Ok((block, [LayerJob { spec, weight: self.weight.clone(), grid, input }]))
    }

    fn rows(&self, rows: &[usize]) -> Result<[Array; 2]> {
        let rows: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let rows = Array::from_slice(&rows, &[rows.len() as i32]);
        Ok([self.x.take_axis(&rows, 0)?, self.y.take_axis(&rows, 0)?])
    }
}

impl Reconstruction for Linear {
    fn rows(&self) -> usize {
        self.x.dim(0) as usize
    }

    fn step(&self, _: usize) -> usize {
        0
    }

    fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
        let [x, _] = self.rows(rows)?;
        visit(0, &x.expand_dims(1)?)
    }

    fn loss_and_grads(
        &self,
        layers: &[QuantizedLayer],
        batch: Batch<'_>,
    ) -> Result<(Array, Vec<LayerGradients>)> {
        let [x, y] = self.rows(batch.rows)?;
        let error = x.matmul(layers[0].weight.t())?.subtract(y)?;
        let loss = error.square()?.mean(None)?;
        let slope = error.multiply(Array::from_f32(2.0 / error.size() as f32))?;
        let weight = slope.t().matmul(&x)?;
        Ok((loss, vec![LayerGradients { weight, scale: ops::zeros::<f32>(&[1])?, bias: None }]))
    }

    fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
        let error = self.held_out.matmul(layers[0].weight.subtract(&self.weight)?.t())?;
        Ok(error.square()?.mean(None)?.item_exact::<f32>())
    }
}
