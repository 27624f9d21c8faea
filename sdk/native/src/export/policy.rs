//! The table of a bit policy.

use std::ffi::c_void;
use std::marker::PhantomData;

use taq_policy::PolicyRequest;

use super::{create, destroy, guard, instance, item};
use crate::abi::{self, AssignArgs, Buf, HostApi, Item, PolicyTable};
use crate::{BitPolicy, Context, Error, view};

struct Table<T>(PhantomData<T>);

impl<T: BitPolicy> Table<T> {
    const TABLE: PolicyTable = PolicyTable {
        size: size_of::<PolicyTable>() as u32,
        reserved: 0,
        create: Some(create::<T>),
        assign: Some(assign::<T>),
        destroy: Some(destroy::<T>),
    };
}

/// The item of a bit policy.
pub fn policy<T: BitPolicy>() -> Item {
    item::<T>(abi::KIND_POLICY, T::PER_CHANNEL, std::ptr::from_ref(policy_table::<T>()).cast())
}

/// Its functions.
pub fn policy_table<T: BitPolicy>() -> &'static PolicyTable {
    const { &Table::<T>::TABLE }
}

unsafe extern "C" fn assign<T: BitPolicy>(
    pointer: *mut c_void,
    args: *const AssignArgs,
    plan: *mut Buf,
    error: *mut Buf,
) -> i32 {
    guard(error, || {
        // SAFETY: the host's pointers, as the ABI has them.
        unsafe {
            let args = view::sized(args, "AssignArgs")?;
            let host: &HostApi = view::sized(args.host, "the host's table")?;
            let request: PolicyRequest = serde_json::from_str(view::text(args.request, "the request")?)
                .map_err(|e| Error::invalid(format!("the request cannot be read: {e}")))?;
            let answer = instance::<T>(pointer)?.assign(&request, &Context::new(0, host))?;
            let answer = serde_json::to_vec(&answer).map_err(|e| Error::Failed(e.to_string()))?;
            if plan.is_null() {
                return Err(Error::invalid("there is no room for the plan"));
            }
            plan.write(view::owned(answer));
            Ok(())
        }
    })
}
