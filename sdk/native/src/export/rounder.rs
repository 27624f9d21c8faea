//! The tables of rounders, by layer and by block.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::{create, destroy, guard, instance, item, layer_spec, put};
use crate::abi::{self, Buf, HostApi, Item, RoundBlockArgs, RoundLayerArgs, RounderTable};
use crate::reconstruction::Reconstruction;
use crate::{
    BlockJob, BlockRounder, Context, Error, Grid, Layer, LayerJob, LayerRounder, Result, RoundedLayer, view,
};

struct ByLayer<T>(PhantomData<T>);

impl<T: LayerRounder> ByLayer<T> {
    const TABLE: RounderTable = RounderTable {
        size: size_of::<RounderTable>() as u32,
        reserved: 0,
        create: Some(create::<T>),
        round_layer: Some(round_layer::<T>),
        round_block: None,
        destroy: Some(destroy::<T>),
    };
}

struct ByBlock<T>(PhantomData<T>);

impl<T: BlockRounder> ByBlock<T> {
    const TABLE: RounderTable = RounderTable {
        size: size_of::<RounderTable>() as u32,
        reserved: 0,
        create: Some(create::<T>),
        round_layer: None,
        round_block: Some(round_block::<T>),
        destroy: Some(destroy::<T>),
    };
}

/// The item of a rounder of layers.
pub fn layer_rounder<T: LayerRounder>() -> Item {
    item::<T>(abi::KIND_ROUNDER, false, std::ptr::from_ref(layer_rounder_table::<T>()).cast())
}

/// Its functions.
pub fn layer_rounder_table<T: LayerRounder>() -> &'static RounderTable {
    const { &ByLayer::<T>::TABLE }
}

/// The item of a rounder of blocks.
pub fn block_rounder<T: BlockRounder>() -> Item {
    item::<T>(abi::KIND_ROUNDER, false, std::ptr::from_ref(block_rounder_table::<T>()).cast())
}

/// Its functions.
pub fn block_rounder_table<T: BlockRounder>() -> &'static RounderTable {
    const { &ByBlock::<T>::TABLE }
}

/// # Safety
/// As the ABI says.
unsafe fn layer<'a>(layer: &abi::Layer) -> Result<Layer<'a>> {
    // SAFETY: the caller's word.
    unsafe {
        Ok(Layer {
            spec: layer_spec(layer.info)?,
            weight: view::values(&layer.weight, "weight")?,
            grid: Grid {
                bits: layer.grid.bits as u8,
                symmetric: layer.grid.symmetric != 0,
                group_len: layer.grid.group_len as usize,
                groups: layer.grid.groups as usize,
            },
            input_bits: view::values(&layer.input_bits, "input_bits")?,
            input_scale: view::values(&layer.input_scale, "input_scale")?,
            start_scale: view::values(&layer.start_scale, "start_scale")?,
            start_zero_point: view::values(&layer.start_zero_point, "start_zero_point")?,
        })
    }
}

/// Puts the integers where the host wants them.
///
/// # Safety
/// As the ABI says.
unsafe fn answer(layer: &abi::Layer, rounded: &RoundedLayer) -> Result<()> {
    // SAFETY: the caller's word.
    unsafe {
        put("weight_int", &rounded.weight_int, view::room(&layer.weight_int, "weight_int")?)?;
        put("scale", &rounded.scale, view::room(&layer.scale, "scale")?)?;
        put("zero_point", &rounded.zero_point, view::room(&layer.zero_point, "zero_point")?)?;
        if let Some(scale) = &rounded.input_scale {
            put("input_scale", scale, view::room(&layer.learned_input_scale, "learned_input_scale")?)?;
        }
    }
    Ok(())
}

unsafe extern "C" fn round_layer<T: LayerRounder>(
    pointer: *mut c_void,
    args: *const RoundLayerArgs,
    error: *mut Buf,
) -> i32 {
    guard(error, || {
        // SAFETY: the host's pointers, as the ABI has them.
        unsafe {
            let args = view::sized(args, "RoundLayerArgs")?;
            let host: &HostApi = view::sized(args.host, "the host's table")?;
            let abi_layer = view::sized(args.layer, "Layer")?;
            let job = LayerJob {
                layer: layer(abi_layer)?,
                inputs: view::values(&args.inputs, "inputs")?,
                targets: view::values(&args.targets, "targets")?,
                steps: view::values(&args.steps, "steps")?,
            };
            let rounded = instance::<T>(pointer)?.round(&job, &Context::new(args.seed, host))?;
            answer(abi_layer, &rounded)
        }
    })
}

unsafe extern "C" fn round_block<T: BlockRounder>(
    pointer: *mut c_void,
    args: *const RoundBlockArgs,
    error: *mut Buf,
) -> i32 {
    guard(error, || {
        // SAFETY: the host's pointers, as the ABI has them.
        unsafe {
            let args = view::sized(args, "RoundBlockArgs")?;
            let host: &HostApi = view::sized(args.host, "the host's table")?;
            if args.layers.is_null() {
                return Err(Error::invalid("there are no layers"));
            }
            let pointers = std::slice::from_raw_parts(args.layers, args.n_layers);
            let abi_layers = pointers.iter().map(|&l| view::sized(l, "Layer")).collect::<Result<Vec<_>>>()?;
            let layers = abi_layers.iter().map(|l| layer(l)).collect::<Result<Vec<_>>>()?;
            let shapes = layers.iter().map(|l| [l.spec.out_features, l.spec.in_features]).collect();
            let steps = layers.iter().map(|l| l.input_scale.len()).collect();
            let table = view::sized(args.reconstruction, "Reconstruction")?;
            let reconstruction = Reconstruction::new(table, shapes, steps);
            let mut job =
                BlockJob { block: view::text(args.block, "the block's id")?, layers, reconstruction };
            let rounded = instance::<T>(pointer)?.round(&mut job, &Context::new(args.seed, host))?;
            if rounded.len() != abi_layers.len() {
                let (found, expected) = (rounded.len(), abi_layers.len());
                return Err(Error::Failed(format!("the plugin returned {found} layers for {expected}")));
            }
            abi_layers.iter().zip(&rounded).try_for_each(|(l, rounded)| answer(l, rounded))
        }
    })
}
