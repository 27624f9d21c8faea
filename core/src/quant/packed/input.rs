//! Putting inputs on their grids with one kernel.

use mlx_rs::error::Exception;
use mlx_rs::transforms::compile::compile;
use mlx_rs::{Array, Dtype, ops};

use crate::Result;

type Function = Box<dyn FnMut(&[Array]) -> std::result::Result<Vec<Array>, Exception>>;

/// Puts the inputs of [`PackedLinear`](super::PackedLinear)s on their grids; on a GPU by one kernel, which is made when it is first needed and
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
    pub(super) fn run(&mut self, arguments: &[Array]) -> Result<Array> {
        let output = (self.0)(arguments)?.pop();
        output.ok_or_else(|| Exception::custom("quantizing an input gave no array").into())
    }
}

/// [`fake_quantize`](crate::quant::fake_quantize) without a gradient: x, multiplier m, step size s, lowest and highest integer,
/// shift z. Computed in f32, given in the type of x.
fn on_grid(arguments: &[Array]) -> std::result::Result<Vec<Array>, Exception> {
    let [x, m, s, low, high, z] = arguments else {
        return Err(Exception::custom("an input is quantized by six arrays"));
    };
    let in_steps = x.as_dtype(Dtype::Float32)?.subtract(z)?.divide(s.multiply(m)?)?;
    let integers = ops::maximum(ops::minimum(in_steps.round(None)?, high)?, low)?;
    Ok(vec![integers.multiply(s)?.add(z.divide(m)?)?.as_dtype(x.dtype())?])
}
