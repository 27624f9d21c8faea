//! The WASM side of a policy: ABI version 1 (docs/abi/policy-v1.md).
//!
//! The host offers three functions in the module `taq`; the guest exports its memory, a marker that names the ABI,
//! `describe` and `assign`. All documents are UTF-8 JSON. [`export_policy!`](crate::export_policy) writes the exports.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{PolicyError, PolicyInfo, PolicyPlan, PolicyRequest};

/// The settings in a request, with every default filled in.
///
/// # Errors
/// A [`PolicyError`] that names the field.
pub fn settings<S: DeserializeOwned>(request: &PolicyRequest) -> Result<S, PolicyError> {
    serde_json::from_value(Value::Object(request.settings.clone()))
        .map_err(|e| PolicyError::new(format!("settings: {e}")))
}

/// What a policy says of settings that can be read and make no sense. The host tells settings' errors by their head,
/// and reports them before any work begins.
pub fn refused_settings(error: PolicyError) -> PolicyError {
    PolicyError::new(format!("settings: {error}"))
}

/// Answers a request as bytes with a plan or an error as bytes. The flag says whether it is a plan.
pub fn answer(
    request: &[u8],
    assign: impl FnOnce(&PolicyRequest) -> Result<PolicyPlan, PolicyError>,
) -> (Vec<u8>, bool) {
    let plan = serde_json::from_slice::<PolicyRequest>(request)
        .map_err(|e| PolicyError::new(format!("the request cannot be read: {e}")))
        .and_then(|request| assign(&request))
        .and_then(|plan| to_json(&plan));
    match plan {
        Ok(plan) => (plan, true),
        Err(error) => (to_json(&error).unwrap_or_default(), false),
    }
}

/// A description as bytes.
pub fn description(info: &PolicyInfo) -> Vec<u8> {
    to_json(info).unwrap_or_default()
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, PolicyError> {
    serde_json::to_vec(value).map_err(|e| PolicyError::new(format!("the answer cannot be written: {e}")))
}

/// What only exists inside a WASM module.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code, reason = "functions of another module can only be declared so")]
pub mod host {
    use super::{PolicyError, PolicyInfo, PolicyPlan, PolicyRequest};

    #[link(wasm_import_module = "taq")]
    // SAFETY: the signatures are those of ABI version 1, which the host checks before it runs the module.
    unsafe extern "C" {
        #[link_name = "read_request"]
        fn read_request(to: *mut u8);
        #[link_name = "write_response"]
        fn write_response(from: *const u8, length: usize);
        #[link_name = "log"]
        fn log(level: u32, from: *const u8, length: usize);
    }

    /// Writes a line to the host's log: 1 error, 2 warning, 3 information, 4 debugging.
    pub fn write_log(level: u32, text: &str) {
        // SAFETY: the host reads `text.len()` bytes at `text`, which is borrowed for the call.
        unsafe { log(level, text.as_ptr(), text.len()) }
    }

    /// The export `describe`.
    pub fn describe(info: impl FnOnce() -> PolicyInfo) -> i32 {
        log_panics();
        respond(&super::description(&info()));
        0
    }

    /// The export `assign`.
    pub fn assign(
        length: i32,
        assign: impl FnOnce(&PolicyRequest) -> Result<PolicyPlan, PolicyError>,
    ) -> i32 {
        log_panics();
        let mut request = vec![0; length as usize];
        // SAFETY: the host writes the request, whose length it gave, to the start of the vector.
        unsafe { read_request(request.as_mut_ptr()) };
        let (response, fine) = super::answer(&request, assign);
        respond(&response);
        i32::from(!fine)
    }

    /// A panic ends the module with a trap, which has no text: the log gets it.
    fn log_panics() {
        std::panic::set_hook(Box::new(|panic| write_log(1, &panic.to_string())));
    }

    fn respond(response: &[u8]) {
        // SAFETY: the host reads `response.len()` bytes at `response`, which is borrowed for the call.
        unsafe { write_response(response.as_ptr(), response.len()) }
    }
}

/// Exports a policy from a WASM module: a function that gives its [`PolicyInfo`], and one that takes a
/// [`&PolicyRequest`](PolicyRequest) and gives a plan or a [`PolicyError`]. Elsewhere it does nothing, so that the same crate also
/// serves as a native library.
///
/// ```
/// use taq_policy::{LayerPlan, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest};
///
/// fn info() -> PolicyInfo {
///     PolicyInfo::new("careful", "1.0.0", "Eight bits everywhere.")
/// }
///
/// fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
///     let steps = request.timesteps.len();
///     let plan = |l: &taq_policy::LayerSpec| LayerPlan::uniform(l.id.clone(), 8, 8, steps);
///     Ok(PolicyPlan::new(request.layers.iter().map(plan).collect()))
/// }
///
/// taq_policy::export_policy!(info, assign);
/// ```
#[macro_export]
macro_rules! export_policy {
    ($info:path, $assign:path) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exports carry their own names")]
        mod taq_policy_exports {
            // The exports have names of their own here, so that they do not hide the functions given to the macro.
            use super::*;

            /// Says which ABI the module speaks; never called.
            #[unsafe(export_name = "taq_policy_abi_v1")]
            extern "C" fn taq_export_marker() {}

            #[unsafe(export_name = "describe")]
            extern "C" fn taq_export_describe() -> i32 {
                $crate::guest::host::describe($info)
            }

            #[unsafe(export_name = "assign")]
            extern "C" fn taq_export_assign(length: i32) -> i32 {
                $crate::guest::host::assign(length, $assign)
            }
        }
    };
}
