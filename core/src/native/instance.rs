//! One instance of a plugin: made from settings, ended when it is dropped.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use serde_json::Value;
use taq_plugin::abi::{self, Buf, Create, Destroy, Str};

use super::call::{bytes, failure};
use super::declared::NativeItem;
use crate::{Context, Error, Result};

/// An instance.
pub(super) struct Instance {
    pub item: &'static NativeItem,
    pointer: *mut c_void,
    destroy: Destroy,
    /// After a panic nothing is known of it: it is not used again, nor ended.
    broken: Cell<bool>,
}

// SAFETY: the ABI allows an instance on any thread, one at a time.
unsafe impl Send for Instance {}

impl Instance {
    /// Makes one.
    pub(super) fn create(
        item: &'static NativeItem,
        create: Option<Create>,
        destroy: Option<Destroy>,
        settings: &Value,
    ) -> Result<Self> {
        let (Some(create), Some(destroy)) = (create, destroy) else {
            return Err(Error::Native { path: item.path.clone(), reason: "a function is null".into() });
        };
        let settings = match settings {
            Value::Null => "{}".to_owned(),
            Value::Object(_) => settings.to_string(),
            other => {
                return Err(Error::settings(
                    item.who(),
                    format!("expected a table of settings, found {other}"),
                ));
            }
        };
        let (mut pointer, mut error) = (ptr::null_mut(), Buf::empty());
        // SAFETY: as the ABI says; everything outlives the call.
        let status = unsafe { create(Str::new(&settings), &mut pointer, &mut error) };
        if status != abi::OK {
            return Err(failure(&item.path, (&item.who(), "create"), status, error, None));
        }
        bytes(error, 0);
        Ok(Self { item, pointer, destroy, broken: Cell::new(false) })
    }

    /// Calls one of its functions; `call` gets the instance and room for an error.
    pub(super) fn call(
        &self,
        function: &str,
        cx: Option<&Context>,
        call: impl FnOnce(*mut c_void, *mut Buf) -> i32,
    ) -> Result<()> {
        if self.broken.get() {
            return Err(self.failed("it panicked before and is not used again"));
        }
        let mut error = Buf::empty();
        let status = call(self.pointer, &mut error);
        if status == abi::OK {
            bytes(error, 0);
            return Ok(());
        }
        self.broken.set(status == abi::PANICKED);
        Err(failure(&self.item.path, (&self.item.who(), function), status, error, cx))
    }

    /// An error of this plugin.
    pub(super) fn failed(&self, reason: impl std::fmt::Display) -> Error {
        Error::Native { path: self.item.path.clone(), reason: format!("{}: {reason}", self.item.who()) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.broken.get() {
            // SAFETY: made by `create` of the same table, and not used again.
            unsafe { (self.destroy)(self.pointer) }
        }
    }
}
