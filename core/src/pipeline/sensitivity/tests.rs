//! Measured and estimated errors of a model small enough to know the answer.

use mlx_rs::{Array, ops};

use super::estimate::estimate;
use super::measure::Measure;
use super::rows::{Rows, Squares};
use super::substitute::Widths;
use crate::pipeline::boundary::{Boundary, Storage};
use crate::pipeline::quantized::ActivationPlan;
use crate::pipeline::reconstruction::Guided;
use crate::quant::InputGrids;
use crate::*;

const TOKENS: i32 = 2;
const WIDTH: i32 = 3;

/// Two blocks: `a.img` and `a.txt` work on their own streams, `b.img` on the sum of both. Everything is linear, so that
/// what the estimate neglects is 0.
struct Linear {
    spec: ModelSpec,
    weights: [Array; 3],
    /// Whether the output is one number, the sum of all elements, or all elements.
    summed: bool,
}

fn linear(summed: bool) -> Linear {
    let layer = |id: &str, stream: Stream| LayerSpec {
        id: id.into(),
        block: id[..1].into(),
        stream,
        role: Role::Fc1,
        in_features: WIDTH as usize,
        out_features: WIDTH as usize,
        post_gelu: false,
    };
    let block = |id: &str, layers: Vec<LayerSpec>| BlockSpec { id: id.into(), layers };
    let blocks = vec![
        block("a", vec![layer("a.img", Stream::Image), layer("a.txt", Stream::Text)]),
        block("b", vec![layer("b.img", Stream::Image)]),
    ];
    let spec = ModelSpec {
        name: "linear".into(),
        fingerprint: String::new(),
        blocks,
        weight_only: vec![],
        latent_channels: 1,
        vae_factor: 1,
        patch_size: 1,
    };
    let mut rng = rand_mt::Mt::new(8);
    let weights = [(); 3].map(|()| random(&mut rng, &[WIDTH, WIDTH]));
    Linear { spec, weights, summed }
}

fn random(rng: &mut rand_mt::Mt, shape: &[i32]) -> Array {
    let count: i32 = shape.iter().product();
    Array::from_iter((0..count).map(|_| (f64::from(rng.next_u32()) / 2_f64.powi(31) - 1.0) as f32), shape)
}

impl Model for Linear {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn block_forward(&self, block: usize, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo> {
        let layers = &self.spec.blocks[block].layers;
        let mut call = |layer: usize, input: &Array| {
            let weight = &self.weights[2 * block + layer];
            tap.linear(LinearCall { layer: &layers[layer], input, weight, bias: None })
        };
        let context = io.context.as_ref().expect("a context");
        Ok(match block {
            0 => BlockIo { hidden: call(0, &io.hidden)?, context: Some(call(1, context)?), ..io.clone() },
            _ => BlockIo { hidden: call(0, &io.hidden.add(context)?)?, context: None, ..io.clone() },
        })
    }
    fn unembed(&self, io: &BlockIo, _: (usize, usize), _: &mut dyn Tap) -> Result<Array> {
        let rows = io.hidden.dim(0);
        Ok(match self.summed {
            true => io.hidden.sum_axes(&[1, 2], None)?.reshape(&[rows, 1, 1, 1])?,
            false => io.hidden.reshape(&[rows, 1, TOKENS, WIDTH])?,
        })
    }
    fn weight(&self, id: &LayerId) -> Result<Array> {
        let at = self.spec.layers().position(|l| l.id == *id).expect("a layer of the model");
        Ok(self.weights[at].clone())
    }
    fn defaults(&self) -> ModelDefaults {
        unreachable!("blocks alone")
    }
    fn condition(&self, _: &[String]) -> Result<Conditioning> {
        unreachable!("blocks alone")
    }
    fn embed(&self, _: &Array, _: &[f32], _: &Conditioning, _: &mut dyn Tap) -> Result<BlockIo> {
        unreachable!("blocks alone")
    }
    fn decode(&self, _: &Array) -> Result<Array> {
        unreachable!("blocks alone")
    }
    fn encode(&self, _: &Array) -> Result<Array> {
        unreachable!("blocks alone")
    }
    fn set_weight(&mut self, _: &LayerId, _: Array) -> Result<()> {
        unreachable!("blocks alone")
    }
}

/// Layer, whether its weight, bits, velocity's error and guided error: measured, and estimated.
type Found = (String, bool, u8, [f64; 2], [f64; 2]);

/// `samples` pairs of rows with a context, at two timesteps.
fn run(model: &Linear, samples: usize) -> Vec<Found> {
    let guidance = Some(Guided { weight: 3.0, together: true });
    let rows = Rows {
        samples: (0..samples / 2).flat_map(|image| [(image, 0), (image, 1)]).collect(),
        steps: vec![0, 1],
        guidance,
        latent: (1, TOKENS as usize),
    };
    let mut rng = rand_mt::Mt::new(9);
    let count = rows.len() as i32;
    let io = BlockIo {
        hidden: random(&mut rng, &[count, TOKENS, WIDTH]),
        context: Some(random(&mut rng, &[count, TOKENS, WIDTH])),
        temb: ops::zeros::<f32>(&[count, 1]).unwrap(),
        timesteps: (0..count).map(|row| if row / 2 % 2 == 0 { 1000.0 } else { 500.0 }).collect(),
    };
    let storage = Storage { folder: std::env::temp_dir(), limit: usize::MAX };
    let mut inputs = Boundary::collect(&storage, rows.len(), [Ok(io)].into_iter()).unwrap();
    let embedded = inputs.clone();

    let grids = InputGrids::new(vec![4, 4], &[0.2, 0.5]).unwrap();
    let ids = model.spec.layers().map(|l| (l.id.clone(), grids.clone())).collect();
    let plan = ActivationPlan { timesteps: vec![1000.0, 500.0], inputs: ids, ..Default::default() };
    let mut widths = Widths::with(vec![3, 8], vec![(4, plan)]);
    let mut estimates = estimate(model, &Context::quiet(1), &rows, &embedded, &mut widths).unwrap();

    let measure = Measure::new(model, &rows, &embedded).unwrap();
    let signal = measure.signal().unwrap();
    let names = ["all".to_owned(), "all".to_owned()];
    let errors = |sums: &Squares| {
        let errors = sums.over(&signal, &names, "it").unwrap();
        [errors.velocity.all, errors.guided.unwrap().all]
    };
    let mut found = Vec::new();
    for (index, block) in model.spec.blocks.iter().enumerate() {
        for layer in &block.layers {
            let estimated = estimates.remove(&layer.id).unwrap();
            let substitutes = widths.of(model, &layer.id).unwrap();
            assert_eq!((substitutes.len(), estimated.len()), (3, 3));
            for (s, estimated) in substitutes.iter().zip(&estimated) {
                let measured = errors(&measure.errors(index, &inputs, &layer.id, s).unwrap());
                found.push((layer.id.to_string(), s.weight, s.bits, measured, errors(estimated)));
            }
        }
        inputs = inputs.forward(&storage, model, index, None).unwrap();
    }
    assert_eq!(found.len(), 9);
    found
}

/// Of a single number, a random sign's square is 1: nothing is left to chance.
#[test]
fn of_a_linear_model_with_one_output_the_estimate_is_exact() {
    for (layer, weight, bits, measured, estimated) in run(&linear(true), 10) {
        for (measured, estimated) in measured.iter().zip(&estimated) {
            assert!(*measured > 0.0);
            let off = (estimated / measured - 1.0).abs();
            // Errors are small differences of outputs in f32.
            assert!(off < 2e-3, "{layer} {weight} {bits}: measured {measured:e}, estimated {estimated:e}");
        }
    }
}

/// Of many numbers, it is right on average.
#[test]
fn of_a_linear_model_the_estimate_is_unbiased() {
    let found = run(&linear(false), 400);
    for (layer, weight, bits, measured, estimated) in found {
        for (measured, estimated) in measured.iter().zip(&estimated) {
            let off = (estimated / measured - 1.0).abs();
            assert!(off < 0.15, "{layer} {weight} {bits}: measured {measured:e}, estimated {estimated:e}");
        }
    }
}

/// The error of `b.img`'s weight in a loop over everything, in f64.
#[test]
fn measured_errors_are_those_of_a_plain_loop() {
    let model = linear(false);
    let found = run(&model, 10);
    let (_, _, _, [measured, _], _) =
        found.iter().find(|f| (f.0.as_str(), f.1, f.2) == ("b.img", true, 3)).unwrap();

    let mut rng = rand_mt::Mt::new(9);
    let mut draw = || random(&mut rng, &[20, TOKENS, WIDTH]).as_slice::<f32>().to_vec();
    let (hidden, context) = (draw(), draw());
    let product = |x: &[f64], w: &[f32]| -> Vec<f64> {
        let row = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        w.chunks(3).map(row).collect()
    };
    let [img, txt, out] = [0, 1, 2].map(|i| model.weights[i].as_slice::<f32>().to_vec());
    let grid = quant::Grid::channel(3).unwrap();
    let rounded = quant::nearest(&model.weights[2], &grid, quant::Clipping::Mse).unwrap().values();
    let (mut errors, mut signal) = (0.0, 0.0);
    for (h, c) in hidden.chunks(3).zip(context.chunks(3)) {
        let [h, c] = [h, c].map(|x| x.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>());
        let sum: Vec<f64> = product(&h, &img).iter().zip(product(&c, &txt)).map(|(a, b)| a + b).collect();
        for (exact, found) in product(&sum, &out).iter().zip(product(&sum, &rounded)) {
            errors += (found - exact).powi(2);
            signal += exact * exact;
        }
    }
    let expected = errors / signal;
    assert!((measured / expected - 1.0).abs() < 1e-4, "measured {measured:e}, expected {expected:e}");
}
