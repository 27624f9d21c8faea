//! A quantized linear layer whose weight stays packed, for GPUs. What is multiplied are floating-point numbers, with weights
//! of a quarter of the bytes.
//!
//! For a few rows, MLX's `quantized_matmul` takes the integers apart while it multiplies. For many, they are taken apart into
//! a matrix that lives as long as the product: `quantized_matmul` does it again for every 64 rows. On an H100, in float16, at
//! 2048 rows and 4 bits, 6144 to 1536 features take 0.24 ms packed and 0.10 ms unpacked first.

use mlx_rs::error::Exception;
use mlx_rs::transforms::compile::compile;
use mlx_rs::{Array, Dtype, ops};

use super::{Affine, InputGrids, activation_qmax, to_vec};
use crate::{Error, LinearCall, Result, RoundedLayer};

/// Rows for which MLX's CUDA kernels take integers apart once (mlx/backend/cuda/quantized/qmm/qmm_sm80.cu, `tile_m`).
const TILE: i32 = 64;

/// A linear layer with a packed weight. It computes what [`RoundedLayer::quantized`] simulates, in the element type of its
/// input. Weights that MLX has no grid for (groups of another size than multiples of 32) are kept as numbers.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    weight: Weight,
    /// Of each planned timestep.
    steps: Vec<Step>,
    /// `[in_features]`, or a single 1.
    multiplier: Array,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[out_features, in_features]`.
    Whole(Array),
    /// As in [`Affine`], `words` as u32.
    Packed { words: Array, scales: Array, biases: Array, group: i32, bits: i32 },
}

/// The input's grid at a timestep; arrays of f32 that broadcast to `[1, tokens, in_features]`.
#[derive(Debug, Clone)]
struct Step {
    scale: Array,
    low: Array,
    high: Array,
    shift: Array,
    /// What the rounder adds to the layer's own bias, `[1, 1, out_features]`, in the layer's type.
    bias: Option<Array>,
}

impl PackedLinear {
    /// The layer with these integers, on the plan's grids of its input except for what was learned of them, for inputs of
    /// this element type (`Float32`, `Float16` or `Bfloat16`), which step sizes and zero points of the weight are rounded to.
    ///
    /// # Errors
    /// If the layer is none that [`RoundedLayer::validate`] accepts.
    pub fn new(rounded: &RoundedLayer, plan: &InputGrids, dtype: Dtype) -> Result<Self> {
        let [outputs, inputs] = rounded.shape;
        rounded.check("packed weight")?;
        // Four bytes a number, groups of 128 exceed the shared memory of MLX's CUDA kernel.
        let largest = if dtype == Dtype::Float32 { 64 } else { 128 };
        let weight = match rounded.affine(largest)? {
            None => Weight::Whole(rounded.dequantize()?.as_dtype(dtype)?),
            Some(Affine { group, bits, words, scales, biases }) => {
                let (words, _) = words.as_chunks::<4>();
                let words: Vec<u32> = words.iter().map(|b| u32::from_le_bytes(*b)).collect();
                let floats = |values: &[f32]| {
                    Array::from_slice(values, &[outputs as i32, (inputs / group) as i32]).as_dtype(dtype)
                };
                Weight::Packed {
                    words: Array::from_slice(&words, &[outputs as i32, (words.len() / outputs) as i32]),
                    scales: floats(&scales)?,
                    biases: floats(&biases)?,
                    group: group as i32,
                    bits: i32::from(bits),
                }
            }
        };
        let input = rounded.input(plan)?;
        let learned = rounded.learned.as_ref().map_or(&[][..], |l| &l.bias);
        let number = |value: f32| Array::from_slice(&[value], &[1, 1, 1]);
        let shifts = input.shift.as_ref().map(to_vec).transpose()?;
        let scales = to_vec(&input.scale)?;
        let steps = scales.iter().zip(&input.bits).enumerate().map(|(step, (&scale, &bits))| {
            let qmax = activation_qmax(bits)?;
            let row = |values: &[f32], width: usize| {
                Array::from_slice(&values[step * width..][..width], &[1, 1, width as i32])
            };
            let bias = (!learned.is_empty()).then(|| row(learned, outputs).as_dtype(dtype)).transpose()?;
            Ok(Step {
                scale: number(scale),
                low: number(-qmax - 1.0),
                high: number(qmax),
                shift: shifts.as_ref().map_or_else(|| number(0.0), |z| row(z, inputs)),
                bias,
            })
        });
        let steps = steps.collect::<Result<_>>()?;
        let multiplier = input.multiplier.unwrap_or_else(|| Array::from_slice(&[1.0_f32], &[1]));
        let layer = Self { weight, steps, multiplier };
        // Nothing of what it was made from is to be held on to.
        mlx_rs::transforms::eval(layer.arrays())?;
        Ok(layer)
    }

    /// Whether the weight is packed.
    pub fn is_packed(&self) -> bool {
        matches!(self.weight, Weight::Packed { .. })
    }

    /// Bytes that the layer occupies: weight, and the grids of its input.
    pub fn size(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let weight = match &self.weight {
            Weight::Whole(weight) => vec![weight],
            Weight::Packed { words, scales, biases, .. } => vec![words, scales, biases],
        };
        let steps = self.steps.iter().flat_map(|s| {
            [Some(&s.scale), Some(&s.low), Some(&s.high), Some(&s.shift), s.bias.as_ref()]
                .into_iter()
                .flatten()
        });
        weight.into_iter().chain(steps).chain([&self.multiplier])
    }

    /// The layer's output, `[batch, tokens, out_features]`; `steps` has the planned timestep of each row of the batch.
    ///
    /// # Errors
    /// [`Error::Shape`] if the input is not `[batch, tokens, in_features]` with a timestep for each row.
    pub fn forward(
        &self,
        call: &LinearCall<'_>,
        steps: &[usize],
        quantizer: &mut InputQuantizer,
    ) -> Result<Array> {
        let (x, inputs) = (call.input, call.layer.in_features as i32);
        let &[batch, tokens, width] = x.shape() else { return Err(self.refuse(call, steps)) };
        if width != inputs || batch as usize != steps.len() || steps.iter().any(|s| *s >= self.steps.len()) {
            return Err(self.refuse(call, steps));
        }
        let of = |field: fn(&Step) -> &Array| self.of_rows(steps, field);
        let arguments = [
            x.clone(),
            self.multiplier.clone(),
            of(|s| &s.scale)?,
            of(|s| &s.low)?,
            of(|s| &s.high)?,
            of(|s| &s.shift)?,
        ];
        let on_grid = quantizer.run(&arguments)?;
        let own = call.bias.map(|b| b.as_dtype(x.dtype())).transpose()?;
        let output = match &self.weight {
            Weight::Whole(weight) => mlx_host::linear(&on_grid, weight, own.as_ref())?,
            Weight::Packed { words, scales, biases, group, bits } if batch * tokens > TILE => {
                let weight = ops::dequantize(words, scales, biases, *group, *bits)?;
                mlx_host::linear(&on_grid, &weight, own.as_ref())?
            }
            Weight::Packed { words, scales, biases, group, bits } => {
                // All rows in one product: a batch of products would have more tiles that are not full.
                let rows = on_grid.reshape(&[batch * tokens, width])?;
                let y = ops::quantized_matmul(&rows, words, scales, biases, true, *group, *bits)?;
                let y = y.reshape(&[batch, tokens, -1])?;
                own.map_or(Ok(y.clone()), |bias| y.add(bias))?
            }
        };
        match self.steps.first().is_some_and(|s| s.bias.is_some()) {
            true => Ok(output.add(self.of_rows(steps, |s| s.bias.as_ref().unwrap_or(&s.scale))?)?),
            false => Ok(output),
        }
    }

    /// An array of each row's timestep: one for all where it is the same, which costs nothing.
    fn of_rows(&self, steps: &[usize], field: impl Fn(&Step) -> &Array) -> Result<Array> {
        let arrays: Vec<&Array> = steps.iter().map(|&s| field(&self.steps[s])).collect();
        match steps.iter().all(|s| Some(s) == steps.first()) {
            true => Ok(arrays[0].clone()),
            false => Ok(ops::concatenate(&arrays, 0)?),
        }
    }

    fn refuse(&self, call: &LinearCall<'_>, steps: &[usize]) -> Error {
        let (rows, inputs, planned) = (steps.len(), call.layer.in_features, self.steps.len());
        Error::Shape {
            what: format!("input of layer `{}`", call.layer.id),
            expected: format!("[{rows}, tokens, {inputs}], each row at one of {planned} planned timesteps"),
            found: call.input.shape().to_vec(),
        }
    }
}

type Function = Box<dyn FnMut(&[Array]) -> std::result::Result<Vec<Array>, Exception>>;

/// Puts the inputs of [`PackedLinear`]s on their grids; on a GPU by one kernel, which is made when it is first needed and
/// serves all layers.
pub struct InputQuantizer(Function);

impl Default for InputQuantizer {
    fn default() -> Self {
        if mlx_host::on_cpu() {
            return Self(Box::new(on_grid));
        }
        let mut compiled = compile(on_grid, None);
        Self(Box::new(move |arrays: &[Array]| compiled(arrays)))
    }
}

impl std::fmt::Debug for InputQuantizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InputQuantizer")
    }
}

impl InputQuantizer {
    fn run(&mut self, arguments: &[Array]) -> Result<Array> {
        let output = (self.0)(arguments)?.pop();
        output.ok_or_else(|| Exception::custom("quantizing an input gave no array").into())
    }
}

/// [`fake_quantize`](super::fake_quantize) without a gradient: x, multiplier m, step size s, lowest and highest integer,
/// shift z. Computed in f32, given in the type of x.
fn on_grid(arguments: &[Array]) -> std::result::Result<Vec<Array>, Exception> {
    let [x, m, s, low, high, z] = arguments else {
        return Err(Exception::custom("an input is quantized by six arrays"));
    };
    let in_steps = x.as_dtype(Dtype::Float32)?.subtract(z)?.divide(s.multiply(m)?)?;
    let integers = ops::maximum(ops::minimum(in_steps.round(None)?, high)?, low)?;
    Ok(vec![integers.multiply(s)?.add(z.divide(m)?)?.as_dtype(x.dtype())?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Clipping, Granularity, Grid, nearest};
    use crate::{LayerSpec, LearnedInput, Role, Stream};

    /// One layer against its simulation, in each element type, for batches of one timestep and of two.
    #[test]
    fn it_computes_what_is_simulated() {
        let [outputs, inputs] = [10_usize, 192];
        let number = |i: usize| ((i * 7919 % 1013) as f32 - 500.0) / 700.0;
        let weight: Vec<f32> = (0..outputs * inputs).map(number).collect();
        let weight = Array::from_slice(&weight, &[outputs as i32, inputs as i32]);
        // So few rows that they are multiplied packed, and so many that the weight is unpacked.
        let batches = [5, 40].map(|tokens| {
            let x: Vec<f32> = (0..2 * tokens * inputs).map(|i| number(i + 17)).collect();
            Array::from_slice(&x, &[2, tokens as i32, inputs as i32])
        });
        let bias: Vec<f32> = (0..outputs).map(number).collect();
        let bias = Array::from_slice(&bias, &[outputs as i32]);
        let spec = LayerSpec {
            id: "l".into(),
            block: "b".into(),
            stream: Stream::Image,
            role: Role::Fc2,
            in_features: inputs,
            out_features: outputs,
            post_gelu: true,
        };
        let plan = InputGrids::new(vec![8, 4], &[0.006, 0.09]).unwrap();
        let learned = LearnedInput {
            scale: vec![0.005, 0.08],
            shift: (0..2 * inputs).map(|i| number(i) / 8.0).collect(),
            multiplier: (0..inputs).map(|i| [1.0, 2.0, 1.0][i % 3]).collect(),
            bias: (0..2 * outputs).map(|i| number(i + 3)).collect(),
        };
        let mut quantizer = InputQuantizer::default();
        for bits in 2..=8 {
            for granularity in [Granularity::Channel, Granularity::Group(48)] {
                let grid = Grid::new(bits, granularity, false).unwrap();
                let mut rounded = nearest(&weight, &grid, Clipping::Absmax).unwrap();
                for learned in [None, Some(learned.clone())] {
                    rounded.learned = learned;
                    let simulated = rounded.quantized(&plan).unwrap();
                    for (dtype, bound) in
                        [(Dtype::Float32, 1e-6), (Dtype::Float16, 1e-2), (Dtype::Bfloat16, 6e-2)]
                    {
                        let ours = PackedLinear::new(&rounded, &plan, dtype).unwrap();
                        assert_eq!(ours.is_packed(), granularity == Granularity::Channel);
                        for (x, steps) in batches.iter().flat_map(|x| [(x, [0, 0]), (x, [1, 1]), (x, [1, 0])])
                        {
                            let half = x.as_dtype(dtype).unwrap();
                            let wide = half.as_dtype(Dtype::Float32).unwrap();
                            let call = |input| LinearCall {
                                layer: &spec,
                                input,
                                weight: &weight,
                                bias: Some(&bias),
                            };
                            let found = ours.forward(&call(&half), &steps, &mut quantizer).unwrap();
                            assert_eq!(found.dtype(), dtype);
                            let expected = simulated.forward(&call(&wide), &steps, None).unwrap();
                            let found = found.as_dtype(Dtype::Float32).unwrap();
                            let off = crate::metrics::relative_l2_arrays(&found, &expected).unwrap();
                            assert!(
                                off < bound,
                                "{bits} bits, {granularity:?}, {dtype:?}, {steps:?}: {off:e}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn other_inputs_are_refused() {
        let weight = Array::from_slice(&[0.5_f32; 64], &[1, 64]);
        let rounded = nearest(&weight, &Grid::channel(4).unwrap(), Clipping::Absmax).unwrap();
        let plan = InputGrids::new(vec![8], &[0.1]).unwrap();
        let layer = PackedLinear::new(&rounded, &plan, Dtype::Float32).unwrap();
        let spec = LayerSpec {
            id: "l".into(),
            block: "b".into(),
            stream: Stream::Image,
            role: Role::Q,
            in_features: 64,
            out_features: 1,
            post_gelu: false,
        };
        let message = |shape: &[i32], steps: &[usize]| {
            let x = ops::zeros::<f32>(shape).unwrap();
            let call = LinearCall { layer: &spec, input: &x, weight: &weight, bias: None };
            layer.forward(&call, steps, &mut InputQuantizer::default()).unwrap_err().to_string()
        };
        let head =
            "input of layer `l`: expected shape [1, tokens, 64], each row at one of 1 planned timesteps";
        assert_eq!(message(&[1, 64], &[0]), format!("{head}, found [1, 64]"));
        assert_eq!(message(&[1, 2, 32], &[0]), format!("{head}, found [1, 2, 32]"));
        assert_eq!(message(&[1, 2, 64], &[1]), format!("{head}, found [1, 2, 64]"));
    }

    #[test]
    fn four_bits_take_an_eighth_and_a_little() {
        let weight = ops::ones::<f32>(&[256, 1536]).unwrap();
        let rounded = nearest(&weight, &Grid::channel(4).unwrap(), Clipping::Absmax).unwrap();
        let plan = InputGrids::new(vec![8], &[0.1]).unwrap();
        let size = PackedLinear::new(&rounded, &plan, Dtype::Float16).unwrap().size();
        // Four bits a weight, four bytes a group of 128, and five numbers.
        assert_eq!(size, 256 * 1536 / 2 + 256 * 12 * 4 + 5 * 4);
    }
}
