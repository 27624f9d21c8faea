//! NaN and infinity in activations: where they come from.

use mlx_rs::Array;

use crate::pipeline::boundary::{Boundary, block_forward, io_is_finite};
use crate::pipeline::quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
use crate::quant::is_finite;
use crate::{Error, Identity, LayerId, LinearCall, Model, Result, Tap};

/// A block with what went in.
pub(super) struct Passed<'a> {
    pub model: &'a dyn Model,
    pub block: usize,
    pub inputs: &'a Boundary,
    pub plan: &'a ActivationPlan,
    /// Full precision without.
    pub layers: Option<&'a QuantizedLayers>,
}

impl Passed<'_> {
    /// [`Error::NotFinite`] if something in `boundary`, which is what went in or what came out, is NaN or infinite. It names
    /// the first layer whose input is so, and the timestep.
    pub fn check(&self, boundary: &Boundary) -> Result<()> {
        for row in boundary.not_finite.clone().into_iter().flatten() {
            if !io_is_finite(&boundary.rows(&[row])?)? {
                return Err(Error::NotFinite { what: self.locate(row)? });
            }
        }
        Ok(())
    }

    /// What is not finite when this row goes through the block.
    fn locate(&self, row: usize) -> Result<String> {
        let io = self.inputs.rows(&[row])?;
        let (mut exact, mut quantized);
        let inner: &mut dyn Tap = match self.layers {
            Some(layers) => {
                quantized = QuantizedTap::new(self.plan, layers);
                &mut quantized
            }
            None => {
                exact = Identity;
                &mut exact
            }
        };
        let mut watch = Watch { inner, found: None };
        block_forward(self.model, self.block, &io, &mut watch)?;
        let step = self.plan.step(io.timesteps[0]);
        let model = if self.layers.is_some() { "the quantized" } else { "the full-precision" };
        let place = match watch.found {
            Some(layer) => format!("the input of layer `{layer}`"),
            None => format!("the output of block `{}`", self.model.spec().blocks[self.block].id),
        };
        Ok(format!("{place} at step {step} of {model} model"))
    }
}

/// Remembers the first layer whose input is not finite.
struct Watch<'a> {
    inner: &'a mut dyn Tap,
    found: Option<LayerId>,
}

impl Tap for Watch<'_> {
    fn begin(&mut self, timesteps: &[f32]) -> Result<()> {
        self.inner.begin(timesteps)
    }

    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if self.found.is_none() && !is_finite(call.input)? {
            self.found = Some(call.layer.id.clone());
        }
        self.inner.linear(call)
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops;

    use super::*;
    use crate::pipeline::boundary::Storage;
    use crate::quant::{InputGrids, QuantizedLayer};
    use crate::{BlockIo, BlockSpec, Conditioning, LayerSpec, ModelDefaults, ModelSpec, Role, Stream};

    /// Two linear layers one after the other, each without a bias.
    struct Chain {
        spec: ModelSpec,
        weights: [Array; 2],
    }

    fn chain(second: f32) -> Chain {
        let layer = |name: &str| LayerSpec {
            id: name.into(),
            block: "b".into(),
            stream: Stream::Image,
            role: Role::Fc1,
            in_features: 1,
            out_features: 1,
            post_gelu: false,
        };
        let spec = ModelSpec {
            name: "chain".into(),
            fingerprint: String::new(),
            blocks: vec![BlockSpec { id: "b".into(), layers: vec![layer("b.first"), layer("b.second")] }],
            weight_only: vec![],
            latent_channels: 1,
            vae_factor: 1,
            patch_size: 1,
        };
        Chain { spec, weights: [1.0, second].map(|w| Array::from_slice(&[w], &[1, 1])) }
    }

    impl Model for Chain {
        fn spec(&self) -> &ModelSpec {
            &self.spec
        }
        fn block_forward(&self, _: usize, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo> {
            let mut hidden = io.hidden.clone();
            for (layer, weight) in self.spec.blocks[0].layers.iter().zip(&self.weights) {
                hidden = tap.linear(LinearCall { layer, input: &hidden, weight, bias: None })?;
            }
            Ok(BlockIo { hidden, ..io.clone() })
        }
        fn defaults(&self) -> ModelDefaults {
            unreachable!("a block alone")
        }
        fn condition(&self, _: &[String]) -> Result<Conditioning> {
            unreachable!("a block alone")
        }
        fn embed(&self, _: &Array, _: &[f32], _: &Conditioning, _: &mut dyn Tap) -> Result<BlockIo> {
            unreachable!("a block alone")
        }
        fn unembed(&self, _: &BlockIo, _: (usize, usize), _: &mut dyn Tap) -> Result<Array> {
            unreachable!("a block alone")
        }
        fn decode(&self, _: &Array) -> Result<Array> {
            unreachable!("a block alone")
        }
        fn encode(&self, _: &Array) -> Result<Array> {
            unreachable!("a block alone")
        }
        fn weight(&self, _: &LayerId) -> Result<Array> {
            unreachable!("a block alone")
        }
        fn set_weight(&mut self, _: &LayerId, _: Array) -> Result<()> {
            unreachable!("a block alone")
        }
    }

    #[test]
    fn layer_and_step_are_named() {
        let grids = InputGrids::new(vec![8; 2], &[1.0; 2]).unwrap();
        let plan = ActivationPlan { timesteps: vec![1000.0, 500.0], ..Default::default() };
        let storage = Storage { folder: std::env::temp_dir(), limit: usize::MAX };
        let check = |model: &Chain, value: f32, first: Option<f32>| {
            let mut values = vec![1.0_f32; 40];
            values[35] = value;
            let io = BlockIo {
                hidden: Array::from_slice(&values, &[40, 1, 1]),
                context: None,
                temb: ops::zeros::<f32>(&[40, 1]).unwrap(),
                timesteps: (0..40).map(|i| if i < 20 { 1000.0 } else { 490.0 }).collect(),
            };
            let inputs = Boundary::collect(&storage, 40, [Ok(io)].into_iter()).unwrap();
            let layers = first.map(|weight| {
                let weight = Array::from_slice(&[weight], &[1, 1]);
                let layer = QuantizedLayer { weight, input: grids.clone(), bias: None };
                QuantizedLayers::from([("b.first".into(), layer)])
            });
            let passed = Passed { model, block: 0, inputs: &inputs, plan: &plan, layers: layers.as_ref() };
            passed.check(&inputs)?;
            let layers = layers.as_ref().map(|layers| (&plan, layers));
            passed.check(&inputs.forward(&storage, model, 0, layers)?)
        };
        let message = |result: Result<()>| result.unwrap_err().to_string();
        check(&chain(1.0), 2.0, None).unwrap();
        let full = "at step 1 of the full-precision model holds NaN or infinite values";
        assert_eq!(
            message(check(&chain(1.0), f32::NAN, None)),
            format!("the input of layer `b.first` {full}")
        );
        assert_eq!(message(check(&chain(1e38), 1e10, None)), format!("the output of block `b` {full}"));
        let quantized = message(check(&chain(1.0), 2.0, Some(f32::INFINITY)));
        let expected =
            "the input of layer `b.second` at step 0 of the quantized model holds NaN or infinite values";
        assert_eq!(quantized, expected);
    }
}
