//! Quantized layers in two ways at once.

use mlx_rs::{Array, Dtype};
use taq_core::metrics::relative_l2_arrays;
use taq_core::pipeline::QuantizedTap;
use taq_core::{LinearCall, Result, Tap, WeightOnlyCall};

/// Computes every layer in the way under test and by the simulation from the same input, and notes how far they are apart.
/// The model goes on with the former.
pub struct Both<'a> {
    ours: &'a mut dyn Tap,
    simulated: QuantizedTap<'a>,
    /// The largest relative L2 error of a layer's output so far.
    pub worst: f64,
}

impl<'a> Both<'a> {
    /// The two ways.
    pub fn new(ours: &'a mut dyn Tap, simulated: QuantizedTap<'a>) -> Self {
        Self { ours, simulated, worst: 0.0 }
    }
}

impl Tap for Both<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.ours.begin(timesteps)?;
        self.simulated.begin(timesteps)
    }

    fn weight_only(&mut self, call: WeightOnlyCall<'_>) -> Result<Array> {
        self.ours.weight_only(call)
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        let again = LinearCall { layer: call.layer, input: call.input, weight: call.weight, bias: call.bias };
        let (ours, theirs) = (self.ours.linear(again)?, self.simulated.linear(call)?);
        let wide = |array: &Array| array.as_dtype(Dtype::Float32);
        self.worst = self.worst.max(relative_l2_arrays(&wide(&ours)?, &wide(&theirs)?)?);
        Ok(ours)
    }
}
