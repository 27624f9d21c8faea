//! For the fuzzer (`fuzz/`): a guest without a file, with as much fuel as it is worth.

use taq_policy::PolicyRequest;

use super::call::{Answer, Reply, call};
use super::compile::compile;

/// What came of a call: the reply and the fuel, or why there is none.
pub type Outcome = Result<(Result<Vec<u8>, String>, u64), String>;

/// What comes of `describe` and of `assign`, for whatever these bytes are.
pub fn probe(bytes: &[u8], request: &PolicyRequest, fuel: u64) -> (Outcome, Outcome) {
    let guest = match compile(bytes, None) {
        Ok((guest, _)) => guest,
        Err(reason) => return (Err(reason.clone()), Err(reason)),
    };
    let request = serde_json::to_vec(request).unwrap_or_default();
    let outcome = |question| {
        call(&guest, "fuzz", question, fuel).map(|Answer { reply, fuel, .. }| match reply {
            Reply::Document(bytes) => (Ok(bytes), fuel),
            Reply::Refusal(reason) => (Err(reason), fuel),
        })
    };
    (outcome(None), outcome(Some(request.into())))
}
