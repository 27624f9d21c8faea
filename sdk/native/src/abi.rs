//! The C ABI of native plugins, version 1.0, as `include/taq_plugin.h` declares it; `docs/abi.md` is its reference.
//!
//! Integers, floats and pointers only. Every structure that may grow begins with its size in bytes, and grows at its end
//! with the minor version. Pointers that a call gets are valid until it returns; what the host allocates the host frees, and
//! what a plugin allocates carries a function that releases it.
//!
//! The shape follows polars' plugins (pola-rs/pyo3-polars@e1f2272), DuckDB's extensions and the Arrow C data interface:
//! a stamp that is read before any code of the library runs, one versioned entry, owned buffers with `release`.
#![allow(unsafe_code, reason = "tables of pointers that are shared between threads")]

use std::ffi::c_void;

/// First bytes of a [`Stamp`].
pub const MAGIC: [u8; 8] = *b"TAQPLUGN";
/// Major version of this ABI: another one is another ABI, with another entry.
pub const ABI_MAJOR: u16 = 1;
/// Minor version of this ABI.
pub const ABI_MINOR: u16 = 0;
/// Name of the data symbol with the [`Stamp`].
pub const STAMP_SYMBOL: &str = "TAQ_PLUGIN_STAMP";
/// Name of the one function symbol, an [`Entry`].
pub const ENTRY_SYMBOL: &str = "taq_plugin_entry_v1";

/// [`Stamp::flags`]: panics unwind, so that they can be caught.
pub const FLAG_UNWIND: u32 = 1;
/// [`Stamp::flags`]: built without optimisation.
pub const FLAG_DEBUG: u32 = 2;

/// [`Item::kind`]: the table is an [`ObserverTable`].
pub const KIND_OBSERVER: u32 = 1;
/// [`Item::kind`]: the table is a [`RounderTable`].
pub const KIND_ROUNDER: u32 = 2;
/// [`Item::kind`]: the table is a [`PolicyTable`].
pub const KIND_POLICY: u32 = 3;

/// Status: done.
pub const OK: i32 = 0;
/// Status: the settings, or what was asked, are wrong.
pub const INVALID: i32 = 1;
/// Status: this plugin cannot do that.
pub const UNSUPPORTED: i32 = 2;
/// Status: the plugin panicked; its instance is not used again.
pub const PANICKED: i32 = 3;
/// Status: stopped because [`HostApi::cancelled`] said so.
pub const CANCELLED: i32 = 4;
/// Status: anything else went wrong.
pub const FAILED: i32 = 5;

/// [`Tensor::dtype`]: 32-bit floating point.
pub const F32: u32 = 1;
/// [`Tensor::dtype`]: signed 8-bit integers.
pub const I8: u32 = 2;
/// [`Tensor::dtype`]: unsigned 8-bit integers.
pub const U8: u32 = 3;
/// [`Tensor::dtype`]: unsigned 32-bit integers.
pub const U32: u32 = 4;

/// Levels of [`HostApi::log`], from the loudest.
pub const LOG_ERROR: u32 = 1;
/// A warning.
pub const LOG_WARN: u32 = 2;
/// Information.
pub const LOG_INFO: u32 = 3;
/// For debugging.
pub const LOG_DEBUG: u32 = 4;
/// For debugging, in every detail.
pub const LOG_TRACE: u32 = 5;

/// What a library is, in 184 bytes without a pointer: read from the file, before any code of it runs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Always [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of this structure.
    pub size: u32,
    /// [`ABI_MAJOR`] of the SDK that the library was built with.
    pub abi_major: u16,
    /// [`ABI_MINOR`] of it.
    pub abi_minor: u16,
    /// [`FLAG_UNWIND`], [`FLAG_DEBUG`].
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// Compiler, padded with NUL; for people.
    pub compiler: [u8; 64],
    /// SDK and its version, padded with NUL; for people.
    pub sdk: [u8; 32],
    /// Target, padded with NUL; for people.
    pub target: [u8; 64],
}

/// UTF-8 text, borrowed and not terminated. Empty text may have a null pointer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Str {
    /// Its first byte.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

/// Bytes that belong to whoever filled them in. The reader calls `release` once, if it is not null.
#[repr(C)]
#[derive(Debug)]
pub struct Buf {
    /// The first byte, or null.
    pub ptr: *mut u8,
    /// Bytes.
    pub len: usize,
    /// Frees the bytes.
    pub release: Option<unsafe extern "C" fn(*mut Buf)>,
    /// For `release`.
    pub private: *mut c_void,
}

/// Numbers to read, in the host's memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    /// The first number; null only where a tensor may be absent.
    pub data: *const c_void,
    /// [`F32`], [`I8`], [`U8`], [`U32`].
    pub dtype: u32,
    /// Axes.
    pub ndim: u32,
    /// Length of each axis.
    pub shape: *const i64,
    /// Null: row-major without gaps. Version 1.0 knows nothing else.
    pub strides: *const i64,
}

/// Room for numbers, in the host's memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TensorMut {
    /// The first number; null only where a tensor may be absent.
    pub data: *mut c_void,
    /// As in [`Tensor`].
    pub dtype: u32,
    /// Axes.
    pub ndim: u32,
    /// Length of each axis.
    pub shape: *const i64,
    /// As in [`Tensor`].
    pub strides: *const i64,
}

/// What a plugin may call, from any thread.
///
/// The table that [`Entry`] gets, and its `ctx`, are there as long as the process; `progress` does nothing with it. The
/// table of a call is valid until the call returns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct HostApi {
    /// Bytes of this structure.
    pub size: u32,
    /// Minor version of the ABI that the host has.
    pub abi_minor: u32,
    /// First argument of the functions.
    pub ctx: *mut c_void,
    /// Writes a line to the host's log: level ([`LOG_ERROR`] to [`LOG_TRACE`]), who says it, what.
    pub log: unsafe extern "C" fn(ctx: *mut c_void, level: u32, target: Str, message: Str),
    /// Says that `done` of `total` units of this call are done.
    pub progress: unsafe extern "C" fn(ctx: *mut c_void, done: u64, total: u64),
    /// 1 once the user asked to stop: the call should return [`CANCELLED`] soon.
    pub cancelled: unsafe extern "C" fn(ctx: *mut c_void) -> u32,
}

/// A linear layer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LayerInfo {
    /// Bytes of this structure.
    pub size: u32,
    /// 1 if its input comes from a GELU.
    pub post_gelu: u32,
    /// Such as `mm0.img.attn.q_proj`.
    pub id: Str,
    /// The block that it belongs to.
    pub block: Str,
    /// `image` or `text`.
    pub stream: Str,
    /// `q`, `k`, `v`, `o`, `fc1`, `fc2`.
    pub role: Str,
    /// Columns of the weight.
    pub in_features: u64,
    /// Rows of the weight.
    pub out_features: u64,
}

/// A grid of integers: `weight ≈ (integer − zero point) · step size`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// 2 to 8.
    pub bits: u32,
    /// 1: every zero point is 0.
    pub symmetric: u32,
    /// Smallest integer, −2^(bits − 1).
    pub qmin: i32,
    /// Largest integer, 2^(bits − 1) − 1.
    pub qmax: i32,
    /// Weights that share a step size: neighbours in the row-major weight.
    pub group_len: u64,
    /// Such groups.
    pub groups: u64,
}

/// A layer to be rounded, and the room for its integers.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// The layer.
    pub info: *const LayerInfo,
    /// The grid to round to.
    pub grid: Grid,
    /// f32 `[out_features, in_features]`, finite.
    pub weight: Tensor,
    /// u8 `[steps]`: bits of the input at each planned timestep.
    pub input_bits: Tensor,
    /// f32 `[steps]`: step sizes of the input at each planned timestep.
    pub input_scale: Tensor,
    /// f32 `[groups]`: step sizes of the weight where rounding to nearest has the smallest squared error.
    pub start_scale: Tensor,
    /// f32 `[groups]`: their zero points.
    pub start_zero_point: Tensor,
    /// i8 `[out_features, in_features]`: where the integers go.
    pub weight_int: TensorMut,
    /// f32 `[groups]`: where the step sizes go, greater than 0.
    pub scale: TensorMut,
    /// f32 `[groups]`: where the zero points go; 0 unless written.
    pub zero_point: TensorMut,
    /// f32 `[steps]`: where learned step sizes of the input go; those of the plan unless written.
    pub learned_input_scale: TensorMut,
}

/// One call of [`RounderTable::round_layer`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RoundLayerArgs {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// The same seed, the same integers.
    pub seed: u64,
    /// What this call may use.
    pub host: *const HostApi,
    /// The layer.
    pub layer: *const Layer,
    /// f32 `[rows, in_features]`: inputs of the layer in calibration.
    pub inputs: Tensor,
    /// f32 `[rows, out_features]`: what the full-precision weight makes of them, without bias.
    pub targets: Tensor,
    /// u32 `[rows]`: the planned timestep of each row.
    pub steps: Tensor,
}

/// What one layer computes with, for the functions of [`Reconstruction`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LayerValues {
    /// f32 `[out_features, in_features]`: the weight in place of the full-precision one.
    pub weight: Tensor,
    /// f32 `[steps]`, or absent (`data` null): the plan's.
    pub input_scale: Tensor,
}

/// One layer's derivatives, in the host's memory: valid until the next call of [`Reconstruction::loss_and_gradients`], or
/// the end of the call that rounds.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LayerGradients {
    /// f32 `[out_features, in_features]`.
    pub weight: Tensor,
    /// f32 `[steps]`, or absent (`data` null): not asked for.
    pub input_scale: Tensor,
}

/// Rows of calibration to learn from.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// Numbers of rows, each less than [`Reconstruction::rows`].
    pub rows: *const u64,
    /// How many.
    pub n_rows: usize,
    /// Share of elements that full precision takes the place of (QDrop), 0 to 1; 0 for none.
    pub drop: f32,
    /// Which elements.
    pub drop_seed: u32,
    /// 1: derivatives with respect to step sizes of inputs are wanted too.
    pub input_scales: u32,
    /// 0.
    pub reserved: u32,
}

/// Is shown the input of one layer, f32 `[tokens, in_features]`, by the layer's position among the block's. A status other
/// than [`OK`] ends the visit.
pub type Visit = unsafe extern "C" fn(visitor: *mut c_void, layer: usize, input: *const Tensor) -> i32;

/// A block's calibration data, behind functions of the host. They are for the thread that the call came on, and give a
/// status with an error, as a plugin does.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Reconstruction {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// First argument of the functions.
    pub ctx: *mut c_void,
    /// Rows to learn from: images at timesteps.
    pub rows: u64,
    /// `[rows]`: the planned timestep of each.
    pub steps: *const u32,
    /// Shows the inputs of all layers for these rows.
    pub inputs: unsafe extern "C" fn(
        ctx: *mut c_void,
        rows: *const u64,
        n_rows: usize,
        visit: Visit,
        visitor: *mut c_void,
        error: *mut Buf,
    ) -> i32,
    /// The mean squared error of the block's output when its layers compute with these values (one for each, in their
    /// order), and its derivatives, which the host fills in, one for each layer.
    pub loss_and_gradients: unsafe extern "C" fn(
        ctx: *mut c_void,
        layers: *const LayerValues,
        n_layers: usize,
        batch: *const Batch,
        loss: *mut f32,
        gradients: *mut LayerGradients,
        error: *mut Buf,
    ) -> i32,
    /// The same error over rows that learning never sees.
    pub held_out_loss: unsafe extern "C" fn(
        ctx: *mut c_void,
        layers: *const LayerValues,
        n_layers: usize,
        loss: *mut f32,
        error: *mut Buf,
    ) -> i32,
}

/// One call of [`RounderTable::round_block`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RoundBlockArgs {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// The same seed, the same integers.
    pub seed: u64,
    /// What this call may use.
    pub host: *const HostApi,
    /// The block's id.
    pub block: Str,
    /// Its layers, in the order of the forward pass.
    pub layers: *const *const Layer,
    /// How many.
    pub n_layers: usize,
    /// Its calibration data.
    pub reconstruction: *const Reconstruction,
}

/// Makes an instance from settings, a JSON object. The settings are checked here: [`INVALID`].
pub type Create = unsafe extern "C" fn(settings: Str, instance: *mut *mut c_void, error: *mut Buf) -> i32;
/// Ends an instance.
pub type Destroy = unsafe extern "C" fn(instance: *mut c_void);

/// The functions of a rounder. Of `round_layer` and `round_block`, one is null.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RounderTable {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// See [`Create`].
    pub create: Option<Create>,
    /// Rounds one layer by its inputs.
    pub round_layer: Option<
        unsafe extern "C" fn(instance: *mut c_void, args: *const RoundLayerArgs, error: *mut Buf) -> i32,
    >,
    /// Rounds the layers of a block together, by the block's output.
    pub round_block: Option<
        unsafe extern "C" fn(instance: *mut c_void, args: *const RoundBlockArgs, error: *mut Buf) -> i32,
    >,
    /// See [`Destroy`].
    pub destroy: Option<Destroy>,
}

/// One call of [`ObserverTable::observe`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ObserveArgs {
    /// Bytes of this structure.
    pub size: u32,
    /// Noise level of the step.
    pub sigma: f32,
    /// Step of the schedule.
    pub step: u64,
    /// What this call may use.
    pub host: *const HostApi,
    /// The layer whose input it is.
    pub layer: *const LayerInfo,
    /// f32 `[tokens, channels]`, finite.
    pub values: Tensor,
    /// f32 `[channels]`: smallest value of each channel in this batch.
    pub min: Tensor,
    /// f32 `[channels]`: largest value of each channel in this batch.
    pub max: Tensor,
}

/// Where the range goes that an observer found.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RangeArgs {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// f32 `[channels]`: lower end of each channel.
    pub min: TensorMut,
    /// f32 `[channels]`: upper end of each channel.
    pub max: TensorMut,
    /// Lower end of the tensor.
    pub low: *mut f32,
    /// Upper end of the tensor.
    pub high: *mut f32,
}

/// The functions of an observer. An instance sees one layer's input at one timestep.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ObserverTable {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// See [`Create`].
    pub create: Option<Create>,
    /// Takes in one batch.
    pub observe:
        Option<unsafe extern "C" fn(instance: *mut c_void, args: *const ObserveArgs, error: *mut Buf) -> i32>,
    /// The range of all batches; called once, after the last.
    pub finish:
        Option<unsafe extern "C" fn(instance: *mut c_void, args: *const RangeArgs, error: *mut Buf) -> i32>,
    /// See [`Destroy`].
    pub destroy: Option<Destroy>,
}

/// One call of [`PolicyTable::assign`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AssignArgs {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// What this call may use.
    pub host: *const HostApi,
    /// The request, a JSON document (`taq.policy_request.v1`).
    pub request: Str,
}

/// The functions of a bit policy.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PolicyTable {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// See [`Create`].
    pub create: Option<Create>,
    /// Answers with a plan, a JSON document (`taq.policy_plan.v1`).
    pub assign: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            args: *const AssignArgs,
            plan: *mut Buf,
            error: *mut Buf,
        ) -> i32,
    >,
    /// See [`Destroy`].
    pub destroy: Option<Destroy>,
}

/// One plugin of a library.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// [`KIND_OBSERVER`], [`KIND_ROUNDER`], [`KIND_POLICY`]: which table.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// Its name: 1 to 64 letters, digits and `-_.`.
    pub name: Str,
    /// What it says of itself, a JSON document ([`PluginInfo`](crate::PluginInfo)).
    pub describe: Str,
    /// Its functions.
    pub table: *const c_void,
}

/// What a library offers. It and all it points to are there as long as the process.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Decl {
    /// Bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// The library's name: 1 to 64 letters, digits and `-_.`.
    pub name: Str,
    /// The library's version: as the name, and `+`.
    pub version: Str,
    /// The plugins.
    pub items: *const Item,
    /// How many.
    pub n_items: usize,
}

/// The function [`ENTRY_SYMBOL`]: says what the library offers, or returns null with an error. Called once.
pub type Entry = unsafe extern "C" fn(host: *const HostApi, error: *mut Buf) -> *const Decl;

impl Str {
    /// Borrowed text; the caller keeps it alive.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() }
    }
}

impl Buf {
    /// Nothing.
    pub const fn empty() -> Self {
        Self { ptr: std::ptr::null_mut(), len: 0, release: None, private: std::ptr::null_mut() }
    }
}

// SAFETY: these structures are read-only descriptions in static memory; nothing in them is changed after it is written.
unsafe impl Sync for Decl {}
// SAFETY: as above; the entry's table lives as long as the process, and its functions may be called from any thread.
unsafe impl Sync for HostApi {}
// SAFETY: as above.
unsafe impl Send for HostApi {}

/// The layout is fixed for version 1 on 64-bit targets; `tests/layout.rs` compares it with the header's.
#[cfg(target_pointer_width = "64")]
const _: () = {
    macro_rules! sizes {
        ($($name:ident = $size:literal),* $(,)?) => {$(assert!(size_of::<$name>() == $size));*};
    }
    sizes!(
        Stamp = 184,
        Str = 16,
        Buf = 32,
        Tensor = 32,
        TensorMut = 32,
        HostApi = 40,
        LayerInfo = 88,
        Grid = 32,
        Layer = 336,
        RoundLayerArgs = 128,
        LayerValues = 64,
        LayerGradients = 64,
        Batch = 32,
        Reconstruction = 56,
        RoundBlockArgs = 64,
        RounderTable = 40,
        ObserveArgs = 128,
        RangeArgs = 88,
        ObserverTable = 40,
        AssignArgs = 32,
        PolicyTable = 32,
        Item = 48,
        Decl = 56,
    );
};
