//! A library's bit policy as taq's.

use serde_json::{Map, Value};
use taq_plugin::abi::{AssignArgs, Buf, PolicyTable, Str};
use taq_policy::{PolicyPlan, PolicyRequest};

use super::call::{Call, bytes};
use super::declared::{NativeItem, Table};
use super::instance::Instance;
use crate::wasm::{document, limits};
use crate::{BitPolicy, Result};

struct NativePolicy {
    instance: Instance,
    table: PolicyTable,
    settings: Map<String, Value>,
    per_channel: bool,
}

impl NativeItem {
    /// Makes a bit policy.
    ///
    /// # Errors
    /// [`crate::Error::Settings`] if it refuses the settings, [`crate::Error::Native`] if it fails.
    pub fn policy(&'static self, settings: &Value) -> Result<Box<dyn BitPolicy>> {
        let Table::Policy(table) = self.table else { return Err(self.other_kind("policy")) };
        let instance = Instance::create(self, table.create, table.destroy, settings)?;
        let settings = settings.as_object().cloned().unwrap_or_default();
        Ok(Box::new(NativePolicy { instance, table, settings, per_channel: self.info.per_channel }))
    }
}

impl BitPolicy for NativePolicy {
    fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        let Some(assign) = self.table.assign else { return Err(self.instance.failed("`assign` is null")) };
        let request = PolicyRequest { settings: self.settings.clone(), ..request.clone() };
        let request = serde_json::to_string(&request).map_err(|e| self.instance.failed(e))?;
        let call = Call::new(&self.instance.item.speaker, None, 0);
        let host = call.api();
        let args = AssignArgs {
            size: size_of::<AssignArgs>() as u32,
            reserved: 0,
            host: &host,
            request: Str::new(&request),
        };
        let mut plan = Buf::empty();
        // SAFETY: as the ABI says; everything outlives the call.
        let called = self
            .instance
            .call("assign", None, |instance, error| unsafe { assign(instance, &args, &mut plan, error) });
        let (length, most) = (plan.len, limits::RESPONSE_BYTES);
        let plan = bytes(plan, most);
        called?;
        let plan = plan.ok_or_else(|| self.instance.failed("its plan points nowhere"))?;
        if length > most {
            let reason = format!("its plan has {length} bytes; at most {most} are taken");
            return Err(self.instance.failed(reason));
        }
        document(&plan, "plan").map_err(|reason| self.instance.failed(reason))
    }

    fn per_channel(&self) -> bool {
        self.per_channel
    }
}
