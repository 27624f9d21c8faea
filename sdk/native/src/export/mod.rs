//! The C side of a plugin in Rust: tables of functions that call the traits, and the library's entry.
#![allow(unsafe_code, reason = "the C ABI")]

mod observer;
mod policy;
mod rounder;

use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use crate::abi::{self, Buf, Decl, HostApi, Item, Stamp, Str};
use crate::{Error, LayerSpec, Plugin, PluginInfo, Result, log, view};

pub use observer::{observer, observer_table};
pub use policy::{policy, policy_table};
pub use rounder::{block_rounder, block_rounder_table, layer_rounder, layer_rounder_table};

/// The stamp of a library.
pub const fn stamp(unwinds: bool, debug: bool) -> Stamp {
    let mut flags = 0;
    if unwinds {
        flags |= abi::FLAG_UNWIND;
    }
    if debug {
        flags |= abi::FLAG_DEBUG;
    }
    Stamp {
        magic: abi::MAGIC,
        size: size_of::<Stamp>() as u32,
        abi_major: abi::ABI_MAJOR,
        abi_minor: abi::ABI_MINOR,
        flags,
        reserved: 0,
        compiler: padded(env!("TAQ_PLUGIN_RUSTC")),
        sdk: padded(concat!("taq-plugin ", env!("CARGO_PKG_VERSION"))),
        target: padded(env!("TAQ_PLUGIN_TARGET")),
    }
}

/// Text in so many bytes, cut or padded with NUL; the last byte is NUL.
const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let (text, mut bytes, mut at) = (text.as_bytes(), [0; N], 0);
    while at < text.len() && at + 1 < N {
        bytes[at] = text[at];
        at += 1;
    }
    bytes
}

/// The entry: called once.
///
/// # Safety
/// Pointers as [`abi::Entry`] says.
pub unsafe fn entry(
    host: *const HostApi,
    error: *mut Buf,
    (name, version): (&'static str, &'static str),
    items: impl FnOnce() -> Vec<Item>,
) -> *const Decl {
    // Before anything that may panic: what a panic says goes into the error, not to stderr.
    std::panic::set_hook(Box::new(|panic| {
        let said = panic.to_string();
        let said = said.strip_prefix("panicked at ").unwrap_or(&said).replacen('\n', " ", 1);
        PANIC.with_borrow_mut(|text| *text = Some(said));
    }));
    let mut decl = std::ptr::null();
    // SAFETY: the caller's word.
    let host: Result<&'static HostApi> = unsafe { view::sized(host, "the host's table") };
    let status = guard(error, || {
        // A library that is linked into a program finds a subscriber there.
        let _ = tracing::subscriber::set_global_default(log::HostLog(host?));
        let items: &'static [Item] = Box::leak(items().into_boxed_slice());
        decl = Box::leak(Box::new(Decl {
            size: size_of::<Decl>() as u32,
            reserved: 0,
            name: Str::new(name),
            version: Str::new(version),
            items: items.as_ptr(),
            n_items: items.len(),
        }));
        Ok(())
    });
    if status == abi::OK { decl } else { std::ptr::null() }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What a panic says.
pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Error {
    let own = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    let told = PANIC.with_borrow_mut(Option::take);
    // A payload may panic where it is dropped.
    std::mem::forget(payload);
    Error::Panicked(told.or(own).unwrap_or_else(|| "a panic without a message".into()))
}

/// Does the work; errors and panics become a status and a text.
fn guard(error: *mut Buf, work: impl FnOnce() -> Result<()>) -> i32 {
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(panic)));
    match done {
        Ok(()) => abi::OK,
        Err(reason) => {
            // SAFETY: the host gives room for an error, or null.
            unsafe { view::explain(error, &reason.to_string()) };
            reason.status()
        }
    }
}

/// [`abi::Create`].
unsafe extern "C" fn create<T: Plugin>(settings: Str, instance: *mut *mut c_void, error: *mut Buf) -> i32 {
    guard(error, || {
        // SAFETY: the host's text, borrowed for the call.
        let text = unsafe { view::text(settings, "the settings") }?;
        let text = if text.is_empty() { "{}" } else { text };
        let settings: Value = serde_json::from_str(text).map_err(|e| Error::invalid(e.to_string()))?;
        // serde would also read a structure from a list.
        if !settings.is_object() {
            return Err(Error::invalid(format!("expected an object of settings, found {settings}")));
        }
        let settings = serde_json::from_value(settings).map_err(|e| Error::invalid(e.to_string()))?;
        let made = Box::new(T::new(settings)?);
        if instance.is_null() {
            return Err(Error::invalid("there is no room for the instance"));
        }
        // SAFETY: not null, and the host's.
        unsafe { *instance = Box::into_raw(made).cast() };
        Ok(())
    })
}

/// [`abi::Destroy`].
unsafe extern "C" fn destroy<T: Plugin>(instance: *mut c_void) {
    let mut error = Buf::empty();
    let status = guard(&mut error, || {
        if !instance.is_null() {
            // SAFETY: made by `create` of the same table, and not used again.
            drop(unsafe { Box::from_raw(instance.cast::<T>()) });
        }
        Ok(())
    });
    if status != abi::OK {
        // SAFETY: filled in by `guard`.
        let text = unsafe { view::taken(error, view::MESSAGE_BYTES) };
        tracing::error!("dropping `{}`: {}", T::NAME, view::message(&text));
    }
}

/// An instance that the host uses on this thread.
///
/// # Safety
/// The pointer comes from `create` of the same table; nobody else uses it meanwhile.
unsafe fn instance<'a, T>(pointer: *mut c_void) -> Result<&'a mut T> {
    if pointer.is_null() {
        return Err(Error::invalid("the instance is null"));
    }
    // SAFETY: the caller's word.
    Ok(unsafe { &mut *pointer.cast::<T>() })
}

/// The item of a plugin.
fn item<T: Plugin>(kind: u32, per_channel: bool, table: *const c_void) -> Item {
    let schema = match schemars::schema_for!(T::Settings).to_value() {
        Value::Object(schema) => schema,
        _ => serde_json::Map::new(),
    };
    let describe = serde_json::to_string(&PluginInfo::new(T::SUMMARY, schema, per_channel));
    let describe: &'static str = Box::leak(describe.unwrap_or_default().into_boxed_str());
    Item { kind, reserved: 0, name: Str::new(T::NAME), describe: Str::new(describe), table }
}

/// A layer's description.
///
/// # Safety
/// As the ABI says.
unsafe fn layer_spec(info: *const abi::LayerInfo) -> Result<LayerSpec> {
    // SAFETY: the caller's word.
    unsafe {
        let info = view::sized(info, "LayerInfo")?;
        let word = |s: Str, what: &str| -> Result<Value> { Ok(Value::from(view::text(s, what)?)) };
        let known = |e: serde_json::Error| Error::invalid(format!("LayerInfo: {e}"));
        Ok(LayerSpec {
            id: view::text(info.id, "a layer's id")?.into(),
            block: view::text(info.block, "a block's id")?.into(),
            stream: serde_json::from_value(word(info.stream, "a layer's stream")?).map_err(known)?,
            role: serde_json::from_value(word(info.role, "a layer's role")?).map_err(known)?,
            in_features: info.in_features as usize,
            out_features: info.out_features as usize,
            post_gelu: info.post_gelu != 0,
        })
    }
}

/// Puts an answer where the host wants it.
fn put<T: Copy>(what: &str, values: &[T], room: &mut [T]) -> Result<()> {
    if values.len() != room.len() {
        return Err(Error::Failed(format!(
            "the plugin returned {} numbers of `{what}`, expected {}",
            values.len(),
            room.len()
        )));
    }
    room.copy_from_slice(values);
    Ok(())
}

/// Exports plugins from a library (`crate-type = ["cdylib"]`): the stamp and the entry. Lists may be left out.
///
/// ```
/// # use taq_plugin::{Context, LayerJob, LayerRounder, Plugin, Result, RoundedLayer};
/// # struct Mine;
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Settings {}
/// # impl Plugin for Mine {
/// #     type Settings = Settings;
/// #     const NAME: &'static str = "mine";
/// #     const SUMMARY: &'static str = "Mine.";
/// #     fn new(_: Settings) -> Result<Self> { Ok(Self) }
/// # }
/// # impl LayerRounder for Mine {
/// #     fn round(&self, job: &LayerJob<'_>, _: &Context<'_>) -> Result<RoundedLayer> { Ok(job.layer.nearest()) }
/// # }
/// taq_plugin::export_plugin! {
///     observers: [],
///     layer_rounders: [Mine],
///     block_rounders: [],
///     policies: [],
/// }
/// ```
#[macro_export]
macro_rules! export_plugin {
    (
        $(observers: [$($observer:ty),* $(,)?] $(,)?)?
        $(layer_rounders: [$($layer_rounder:ty),* $(,)?] $(,)?)?
        $(block_rounders: [$($block_rounder:ty),* $(,)?] $(,)?)?
        $(policies: [$($policy:ty),* $(,)?] $(,)?)?
    ) => {
        #[allow(unsafe_code, reason = "exported symbols")]
        const _: () = {
            #[unsafe(no_mangle)]
            #[used]
            static TAQ_PLUGIN_STAMP: $crate::abi::Stamp =
                $crate::export::stamp(cfg!(panic = "unwind"), cfg!(debug_assertions));

            #[unsafe(no_mangle)]
            unsafe extern "C" fn taq_plugin_entry_v1(
                host: *const $crate::abi::HostApi,
                error: *mut $crate::abi::Buf,
            ) -> *const $crate::abi::Decl {
                let library = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
                let items = || {
                    vec![
                        $($($crate::export::observer::<$observer>(),)*)?
                        $($($crate::export::layer_rounder::<$layer_rounder>(),)*)?
                        $($($crate::export::block_rounder::<$block_rounder>(),)*)?
                        $($($crate::export::policy::<$policy>(),)*)?
                    ]
                };
                // SAFETY: the pointers are passed on.
                unsafe { $crate::export::entry(host, error, library, items) }
            }
        };
    };
}
