//! The table of an observer.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::{create, destroy, guard, instance, item, layer_spec, put};
use crate::abi::{self, Buf, Item, ObserveArgs, ObserverTable, RangeArgs};
use crate::{Error, ObservationPoint, ObservedBatch, Observer, view};

struct Table<T>(PhantomData<T>);

impl<T: Observer> Table<T> {
    const TABLE: ObserverTable = ObserverTable {
        size: size_of::<ObserverTable>() as u32,
        reserved: 0,
        create: Some(create::<T>),
        observe: Some(observe::<T>),
        finish: Some(finish::<T>),
        destroy: Some(destroy::<T>),
    };
}

/// The item of an observer.
pub fn observer<T: Observer>() -> Item {
    item::<T>(abi::KIND_OBSERVER, false, std::ptr::from_ref(observer_table::<T>()).cast())
}

/// Its functions.
pub fn observer_table<T: Observer>() -> &'static ObserverTable {
    const { &Table::<T>::TABLE }
}

unsafe extern "C" fn observe<T: Observer>(
    pointer: *mut c_void,
    args: *const ObserveArgs,
    error: *mut Buf,
) -> i32 {
    guard(error, || {
        // SAFETY: the host's pointers, as the ABI has them.
        unsafe {
            let args = view::sized(args, "ObserveArgs")?;
            let layer = layer_spec(args.layer)?;
            let point = ObservationPoint { layer: &layer, step: args.step as usize, sigma: args.sigma };
            let min: &[f32] = view::values(&args.min, "min")?;
            let batch = ObservedBatch {
                values: view::values(&args.values, "values")?,
                channels: min.len(),
                min,
                max: view::values(&args.max, "max")?,
            };
            instance::<T>(pointer)?.observe(&point, &batch)
        }
    })
}

unsafe extern "C" fn finish<T: Observer>(
    pointer: *mut c_void,
    args: *const RangeArgs,
    error: *mut Buf,
) -> i32 {
    guard(error, || {
        // SAFETY: the host's pointers, as the ABI has them.
        unsafe {
            let args = view::sized(args, "RangeArgs")?;
            let range = instance::<T>(pointer)?.finish()?;
            put("min", &range.min, view::room(&args.min, "min")?)?;
            put("max", &range.max, view::room(&args.max, "max")?)?;
            if args.low.is_null() || args.high.is_null() {
                return Err(Error::invalid("there is no room for the ends"));
            }
            *args.low = range.low;
            *args.high = range.high;
            Ok(())
        }
    })
}
