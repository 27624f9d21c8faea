//! A packed weight of a layer whose input is not quantized.

use mlx_host::HostKernel;
use mlx_rs::{Array, Dtype};
use qgemm::PackedWeight;
use std::sync::Arc;

use super::linear::pack_weight;
use crate::{Result, RoundedLayer};

/// A weight as packed integers of 2 to 8 bits, for the CPU. It is floating point only while it is multiplied.
#[derive(Debug, Clone)]
pub struct WeightOnly(Arc<PackedWeight>);

impl WeightOnly {
    /// The weight with these integers; what was learned of the layer's input is not looked at.
    ///
    /// # Errors
    /// If the layer is none that [`RoundedLayer::validate`] accepts.
    pub fn new(rounded: &RoundedLayer) -> Result<Self> {
        pack_weight(rounded).map(|weight| Self(Arc::new(weight)))
    }

    /// Bytes that it occupies: packed integers, step sizes and zero points.
    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// The weight `[out_features, in_features]`, f32: what [`RoundedLayer::dequantize`] gives. Lazy, so that it takes memory
    /// from the moment when it is needed to the moment when it was used.
    pub fn weight(&self) -> Result<Array> {
        let weight = Arc::clone(&self.0);
        let shape = weight.shape().map(|n| n as i32);
        let kernel = HostKernel::new("packed weight", move |_, outputs| weight.dequantize(outputs[0].f32()));
        Ok(kernel.call(&[], &[(&shape, Dtype::Float32)])?.remove(0))
    }
}
