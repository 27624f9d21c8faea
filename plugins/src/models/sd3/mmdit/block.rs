//! The joint block: two streams of tokens with weights of their own, one attention over both.

use mlx_rs::Array;
use taq_core::{BlockId, BlockIo, BlockSpec, Error, Result, Role, Stream, Tap};

use super::attention::{EPS, IMAGE, IMAGE_ONLY, LayerMaker, Projections, Qkv, TEXT, TappedLinear};
use super::embed::halves;
use super::weight_only::WeightOnlyLinear;
use super::{Compat, MmditConfig};
use crate::models::sd3::ops::{self, gated_add, layer_norm_modulate};
use crate::models::sd3::weights::Loader;

/// Two linear layers with GELU between them.
#[derive(Debug)]
struct Mlp {
    fc1: TappedLinear,
    fc2: TappedLinear,
    gelu_tanh: bool,
}

impl Mlp {
    fn load(make: &LayerMaker<'_, '_>, module: &str, config: &MmditConfig, compat: Compat) -> Self {
        let (width, inner) = (config.width(), config.mlp_width());
        Self {
            fc1: make.linear(&format!("{module}.net.0.proj"), "mlp.fc1", Role::Fc1, [inner, width]),
            fc2: make.linear(&format!("{module}.net.2"), "mlp.fc2", Role::Fc2, [width, inner]),
            gelu_tanh: compat.gelu_tanh(),
        }
    }

    fn forward(&self, x: &Array, tap: &mut dyn Tap) -> Result<Array> {
        let inner = self.fc1.forward(x, tap)?;
        let inner = if self.gelu_tanh { ops::gelu_tanh(&inner)? } else { ops::gelu_erf(&inner)? };
        self.fc2.forward(&inner, tap)
    }
}

/// The text stream of a block.
#[derive(Debug)]
struct Text {
    modulation: WeightOnlyLinear,
    attention: Projections,
    /// `None` in the last block, whose text stream ends at attention.
    mlp: Option<Mlp>,
}

/// A block of the transformer.
#[derive(Debug)]
pub(super) struct Block {
    id: BlockId,
    heads: i32,
    modulation: WeightOnlyLinear,
    attention: Projections,
    /// The image stream's second attention, over itself.
    attention2: Option<Projections>,
    mlp: Mlp,
    text: Text,
}

impl Block {
    /// Block `index`, from tensors named as in diffusers' `JointTransformerBlock`.
    pub(super) fn load(loader: &Loader<'_>, index: usize, config: &MmditConfig, compat: Compat) -> Self {
        let id = BlockId::new(format!("mm{index}"));
        let (last, dual) = (config.is_last(index), config.dual_attention_layers.contains(&index));
        let width = config.width();
        let modulation = |name: &str, stream: &str, chunks: usize| {
            let id = format!("{id}.{stream}.modulation");
            WeightOnlyLinear::load(&loader.scope(name), id, [chunks * width, width])
        };
        let image = LayerMaker { loader, block: &id, stream: Stream::Image };
        let text = LayerMaker { stream: Stream::Text, ..image };
        let attention = |make, keys, output| Projections::load(make, keys, config, compat.key_bias(), output);
        Self {
            heads: config.num_attention_heads as i32,
            modulation: modulation("norm1.linear", "img", if dual { 9 } else { 6 }),
            attention: attention(&image, IMAGE, true),
            attention2: dual.then(|| attention(&image, IMAGE_ONLY, true)),
            mlp: Mlp::load(&image, "ff", config, compat),
            text: Text {
                modulation: modulation("norm1_context.linear", "txt", if last { 2 } else { 6 }),
                attention: attention(&text, TEXT, !last),
                mlp: (!last).then(|| Mlp::load(&text, "ff_context", config, compat)),
            },
            id,
        }
    }

    /// The quantizable layers, in the order of [`Self::forward`].
    pub(super) fn layers(&self) -> impl Iterator<Item = &TappedLinear> {
        let Self { attention: a, attention2: a2, mlp, text, .. } = self;
        let t = &text.attention;
        [&a.q, &a.k, &a.v, &t.q, &t.k, &t.v]
            .into_iter()
            .chain(&a.o)
            .chain(a2.iter().flat_map(|a2| [&a2.q, &a2.k, &a2.v].into_iter().chain(&a2.o)))
            .chain([&mlp.fc1, &mlp.fc2])
            .chain(&t.o)
            .chain(text.mlp.iter().flat_map(|mlp| [&mlp.fc1, &mlp.fc2]))
    }

    /// [`Self::layers`], to change their weights.
    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut TappedLinear> {
        let Self { attention: a, attention2: a2, mlp, text, .. } = self;
        let t = &mut text.attention;
        [&mut a.q, &mut a.k, &mut a.v, &mut t.q, &mut t.k, &mut t.v]
            .into_iter()
            .chain(&mut a.o)
            .chain(
                a2.iter_mut().flat_map(|a2| [&mut a2.q, &mut a2.k, &mut a2.v].into_iter().chain(&mut a2.o)),
            )
            .chain([&mut mlp.fc1, &mut mlp.fc2])
            .chain(&mut t.o)
            .chain(text.mlp.iter_mut().flat_map(|mlp| [&mut mlp.fc1, &mut mlp.fc2]))
    }

    /// The layers that turn the embedding of timestep and pooled text into scales, shifts and gates.
    pub(super) fn weight_only(&self) -> [&WeightOnlyLinear; 2] {
        [&self.modulation, &self.text.modulation]
    }

    /// The block as data.
    pub(super) fn spec(&self) -> BlockSpec {
        BlockSpec { id: self.id.clone(), layers: self.layers().map(|l| l.spec.clone()).collect() }
    }

    /// Both streams through the block. Nothing is evaluated, so that gradients can flow to what the tap puts in.
    pub(super) fn forward(&self, io: &BlockIo, tap: &mut dyn Tap) -> Result<BlockIo> {
        let Some(context) = &io.context else {
            return Err(Error::Shape {
                what: format!("text tokens entering block `{}`", self.id),
                expected: "[batch, tokens, width]".into(),
                found: vec![],
            });
        };
        let temb = ops::silu(&io.temb)?;
        let image = Modulation::new(&self.modulation.forward(&temb, tap)?, self.attention2.is_some())?;
        let text = self.text.modulation.forward(&temb, tap)?;

        let image_in = layer_norm_modulate(&io.hidden, &image.shift, &image.scale, EPS)?;
        let image_qkv = self.attention.project(&image_in, tap)?;
        let (text_qkv, text) = if self.text.mlp.is_some() {
            let text = Modulation::new(&text, false)?;
            let text_in = layer_norm_modulate(context, &text.shift, &text.scale, EPS)?;
            (self.text.attention.project(&text_in, tap)?, Some(text))
        } else {
            // diffusers' AdaLayerNormContinuous: scale first.
            let [scale, shift] = halves(&text)?;
            let text_in = layer_norm_modulate(context, &shift, &scale, EPS)?;
            (self.text.attention.project(&text_in, tap)?, None)
        };
        let (image_out, text_out) = Qkv::attend_jointly(&image_qkv, &text_qkv, self.heads)?;

        let image_out = output(&self.attention, image_out, tap)?;
        let mut hidden = gated_add(&io.hidden, &image.gate, &image_out)?;
        if let (Some(attention), Some([shift, scale, gate])) = (&self.attention2, &image.second) {
            let input = layer_norm_modulate(&io.hidden, shift, scale, EPS)?;
            let out = attention.project(&input, tap)?.attend(self.heads)?;
            hidden = gated_add(&hidden, gate, &output(attention, out, tap)?)?;
        }
        let hidden = image.mlp(&self.mlp, &hidden, tap)?;

        let context = match (&self.text.mlp, &text) {
            (Some(mlp), Some(text)) => {
                let out = output(&self.text.attention, text_out, tap)?;
                Some(text.mlp(mlp, &gated_add(context, &text.gate, &out)?, tap)?)
            }
            _ => None,
        };
        Ok(BlockIo { hidden, context, temb: io.temb.clone(), timesteps: io.timesteps.clone() })
    }
}

/// Attention's result through the output projection, if there is one.
fn output(attention: &Projections, x: Array, tap: &mut dyn Tap) -> Result<Array> {
    match &attention.o {
        Some(o) => o.forward(&x, tap),
        None => Ok(x),
    }
}

/// A stream's modulation vectors, `[batch, width]` each.
struct Modulation {
    shift: Array,
    scale: Array,
    gate: Array,
    mlp_shift: Array,
    mlp_scale: Array,
    mlp_gate: Array,
    /// Shift, scale and gate of the second attention.
    second: Option<[Array; 3]>,
}

impl Modulation {
    /// From six chunks side by side in the order of the fields, or nine with those of a second attention.
    fn new(x: &Array, second: bool) -> Result<Self> {
        let mut chunks = x.split_equal(if second { 9 } else { 6 }, -1)?.into_iter();
        let mut next = || {
            chunks.next().ok_or_else(|| Error::Shape {
                what: "modulation".into(),
                expected: "[batch, 6 · width] or [batch, 9 · width]".into(),
                found: x.shape().to_vec(),
            })
        };
        Ok(Self {
            shift: next()?,
            scale: next()?,
            gate: next()?,
            mlp_shift: next()?,
            mlp_scale: next()?,
            mlp_gate: next()?,
            second: if second { Some([next()?, next()?, next()?]) } else { None },
        })
    }

    /// The second half of a block: the MLP's output added to `x`.
    fn mlp(&self, mlp: &Mlp, x: &Array, tap: &mut dyn Tap) -> Result<Array> {
        let input = layer_norm_modulate(x, &self.mlp_shift, &self.mlp_scale, EPS)?;
        gated_add(x, &self.mlp_gate, &mlp.forward(&input, tap)?)
    }
}
