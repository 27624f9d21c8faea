//! A reconstruction problem of one's own making.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops, transforms};
use taq_core::quant::{Grid, InputGrids, QDrop, QuantizedLayer};
use taq_core::{
    Batch, BlockJob, BlockSpec, LayerGradients, LayerJob, LayerSpec, LinearCall, Reconstruction, Result,
    Role, Stream,
};

/// Rows that a problem holds back.
const HELD_OUT: usize = 32;
/// Tokens in a row.
const TOKENS: usize = 4;

/// Linear layers side by side on one correlated input: the output is the sum of theirs.
pub(in crate::rounders) struct Planted {
    inputs: usize,
    outputs: usize,
    weights: Vec<Vec<f32>>,
    /// `[rows, tokens, inputs]`; the last [`HELD_OUT`] rows are held out.
    x: Array,
    /// Timesteps; rows have them in turn.
    steps: usize,
    /// Bits of the inputs.
    bits: u8,
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
        let mut x = Vec::with_capacity((rows + HELD_OUT) * TOKENS * inputs);
        for _ in 0..(rows + HELD_OUT) * TOKENS {
            let factors: Vec<f32> = (0..rank).map(|_| normal()).collect();
            x.extend((0..inputs).map(|i| {
                let strong: f32 = factors.iter().enumerate().map(|(k, f)| f * mixing[k * inputs + i]).sum();
                strong / (rank as f32).sqrt() + offset[i] + 0.2 * normal()
            }));
        }
        let x = Array::from_slice(&x, &[(rows + HELD_OUT) as i32, TOKENS as i32, inputs as i32]);
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
        Self { inputs, outputs, weights, x, steps: 1, bits: 8, block }
    }

    /// The same inputs for another first layer.
    pub(in crate::rounders) fn with_weight(mut self, weight: &[f32]) -> Self {
        weight.clone_into(&mut self.weights[0]);
        self
    }

    /// Inputs that come from a GELU: squeezed below, wide above, each channel and each of `steps` timesteps otherwise, on
    /// so many bits.
    pub(in crate::rounders) fn post_gelu(mut self, steps: usize, bits: u8) -> Self {
        let channel = |c: usize| if c % 11 == 3 { 6.0 } else { 0.5 + 0.1 * (c % 7) as f32 };
        let factor: Vec<f32> = (0..self.inputs).map(channel).collect();
        let factor = Array::from_slice(&factor, &[self.inputs as i32]);
        let rows = self.x.dim(0);
        let by_step: Vec<f32> =
            (0..rows).map(|r| 1.0 + 2.0 * (r as usize % steps) as f32 / steps as f32).collect();
        let by_step = Array::from_slice(&by_step, &[rows, 1, 1]);
        let wide = self.x.multiply(&factor).unwrap().multiply(&by_step).unwrap();
        self.x = mlx_rs::nn::gelu_approximate(&wide).unwrap();
        self.block.layers.iter_mut().for_each(|l| l.post_gelu = true);
        Self { steps, bits, ..self }
    }

    /// The first layer's weight, row-major.
    pub(in crate::rounders) fn weight(&self) -> &[f32] {
        &self.weights[0]
    }

    /// The job of the first layer.
    pub(in crate::rounders) fn layer(&self, grid: Grid) -> LayerJob {
        self.layers(grid).swap_remove(0)
    }

    /// The jobs of all layers. The plan's step sizes are those of the largest input.
    pub(in crate::rounders) fn layers(&self, grid: Grid) -> Vec<LayerJob> {
        let shape = [self.outputs as i32, self.inputs as i32];
        let absmax = ops::max(self.x.abs().unwrap(), None).unwrap().item_exact::<f32>();
        let scale = absmax / taq_core::quant::activation_qmax(self.bits).unwrap();
        let input = InputGrids::new(vec![self.bits; self.steps], &vec![scale; self.steps]).unwrap();
        let job = |(spec, w): (&LayerSpec, &Vec<f32>)| LayerJob {
            spec: spec.clone(),
            weight: Array::from_slice(w, &shape),
            grid,
            input: input.clone(),
        };
        self.block.layers.iter().zip(&self.weights).map(job).collect()
    }

    /// Error with these layers over these rows.
    fn error(&self, layers: &[QuantizedLayer], rows: &[usize], drop: Option<QDrop>) -> Result<Array> {
        let index: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let x = self.x.take_axis(Array::from_slice(&index, &[index.len() as i32]), 0)?;
        let steps: Vec<usize> = rows.iter().map(|&r| self.step(r)).collect();
        let mut difference = Array::from_f32(0.0);
        for ((layer, spec), exact) in layers.iter().zip(&self.block.layers).zip(&self.weights) {
            let exact = Array::from_slice(exact, &[self.outputs as i32, self.inputs as i32]);
            let call = LinearCall { layer: spec, input: &x, weight: &exact, bias: None };
            difference = difference.add(layer.forward(&call, &steps, drop)?)?.subtract(call.compute()?)?;
        }
        Ok(difference.square()?.mean(None)?)
    }

    /// Error with these layers over all rows to learn from.
    pub(in crate::rounders) fn training_error(&self, layers: &[QuantizedLayer]) -> f32 {
        let rows: Vec<usize> = (0..self.rows()).collect();
        self.error(layers, &rows, None).unwrap().item_exact::<f32>()
    }
}

impl Reconstruction for Planted {
    fn rows(&self) -> usize {
        self.x.dim(0) as usize - HELD_OUT
    }

    fn step(&self, row: usize) -> usize {
        row % self.steps
    }

    fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
        let index: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let x = self.x.take_axis(Array::from_slice(&index, &[index.len() as i32]), 0)?;
        (0..self.weights.len()).try_for_each(|layer| visit(layer, &x))
    }

    fn loss_and_grads(
        &self,
        layers: &[QuantizedLayer],
        batch: Batch<'_>,
    ) -> Result<(Array, Vec<LayerGradients>)> {
        assert!(batch.rows.iter().all(|r| *r < self.rows()));
        let arrays: Vec<Array> = layers
            .iter()
            .flat_map(|l| {
                let bias = l.bias.clone().unwrap_or_else(|| Array::from_f32(0.0));
                [l.weight.clone(), l.input.scale.clone(), bias]
            })
            .collect();
        let loss = |arrays: &[Array]| -> std::result::Result<Vec<Array>, Exception> {
            let with = |(layer, a): (&QuantizedLayer, &[Array])| QuantizedLayer {
                weight: a[0].clone(),
                input: InputGrids { scale: a[1].clone(), ..layer.input.clone() },
                bias: layer.bias.as_ref().map(|_| a[2].clone()),
            };
            let layers: Vec<_> = layers.iter().zip(arrays.chunks(3)).map(with).collect();
            let error = self.error(&layers, batch.rows, batch.drop);
            error.map(|e| vec![e]).map_err(|e| Exception::custom(e.to_string()))
        };
        let argnums: Vec<i32> = (0..arrays.len() as i32).collect();
        let (value, grads) = transforms::value_and_grad_with_argnums(loss, &argnums[..])(&arrays)?;
        let gradients = grads.chunks(3).zip(layers).map(|(g, layer)| LayerGradients {
            weight: g[0].clone(),
            scale: g[1].clone(),
            bias: layer.bias.as_ref().map(|_| g[2].clone()),
        });
        let gradients = gradients.collect();
        Ok((value[0].clone(), gradients))
    }

    fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
        let rows: Vec<usize> = (self.rows()..self.x.dim(0) as usize).collect();
        Ok(self.error(layers, &rows, None)?.item_exact::<f32>())
    }
}

/// The job of rounding the layers of a problem.
pub(in crate::rounders) fn job<'a>(planted: &'a Planted, layers: &'a [LayerJob]) -> BlockJob<'a> {
    BlockJob { block: &planted.block, layers, reconstruction: planted }
}
