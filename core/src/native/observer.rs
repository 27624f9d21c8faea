//! A library's observer as taq's.

use serde_json::Value;
use taq_plugin::abi::{ObserveArgs, ObserverTable};
use taq_plugin::host::{RangeRoom, Words};
use taq_plugin::view::Shape;

use super::call::Call;
use super::declared::{NativeItem, Table};
use super::instance::Instance;
use crate::stats::InputRange;
use crate::{Error, ObservationPoint, ObservedBatch, ObservedInput, Observer, Result};

struct NativeObserver {
    instance: Instance,
    table: ObserverTable,
    /// Of the batches that were seen.
    channels: Option<usize>,
}

impl NativeItem {
    /// Makes an observer.
    ///
    /// # Errors
    /// [`Error::Settings`] if it refuses the settings, [`Error::Native`] if it fails.
    pub fn observer(&'static self, settings: &Value) -> Result<Box<dyn Observer>> {
        let Table::Observer(table) = self.table else { return Err(self.other_kind("observer")) };
        let instance = Instance::create(self, table.create, table.destroy, settings)?;
        Ok(Box::new(NativeObserver { instance, table, channels: None }))
    }

    pub(super) fn other_kind(&self, wanted: &str) -> Error {
        Error::Native { path: self.path.clone(), reason: format!("{} is no {wanted}", self.who()) }
    }
}

impl Observer for NativeObserver {
    fn observe(&mut self, point: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
        let Some(observe) = self.table.observe else { return Err(self.instance.failed("`observe` is null")) };
        let info = Words::of(point.layer).info();
        let tokens = Shape::matrix(batch.values.len() / batch.channels.max(1), batch.channels);
        let channels = Shape::vector(batch.channels);
        let call = Call::new(&self.instance.item.speaker, None, 0);
        let host = call.api();
        let args = ObserveArgs {
            size: size_of::<ObserveArgs>() as u32,
            sigma: point.sigma,
            step: point.step as u64,
            host: &host,
            layer: &info,
            values: tokens.view(batch.values),
            min: channels.view(batch.min),
            max: channels.view(batch.max),
        };
        self.channels = Some(batch.channels);
        // SAFETY: as the ABI says; everything outlives the call.
        self.instance.call("observe", None, |instance, error| unsafe { observe(instance, &args, error) })
    }

    fn finish(self: Box<Self>, _: &ObservedInput<'_>) -> Result<InputRange> {
        let Some(channels) = self.channels else { return Ok(InputRange::default()) };
        let Some(finish) = self.table.finish else { return Err(self.instance.failed("`finish` is null")) };
        let mut room = RangeRoom::new(channels);
        let args = room.args();
        // SAFETY: as the ABI says; everything outlives the call.
        self.instance.call("finish", None, |instance, error| unsafe { finish(instance, &args, error) })?;
        room.range().map_err(|reason| self.instance.failed(reason))
    }
}
