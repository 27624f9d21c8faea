//! A library's observer as taq's.

use serde_json::Value;
use taq_plugin::abi::{ObserveArgs, ObserverTable, RangeArgs};
use taq_plugin::host::{Guarded, UNWRITTEN, Words};
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
        let shape = Shape::vector(channels);
        let mut min = Guarded::filled(UNWRITTEN, channels);
        let mut max = Guarded::filled(UNWRITTEN, channels);
        let mut ends = Guarded::filled(UNWRITTEN, 2);
        let [low, high] = ends.room() else { return Err(self.instance.failed("no room")) };
        let args = RangeArgs {
            size: size_of::<RangeArgs>() as u32,
            reserved: 0,
            min: shape.room(min.room()),
            max: shape.room(max.room()),
            low,
            high,
        };
        // SAFETY: as the ABI says; everything outlives the call.
        self.instance.call("finish", None, |instance, error| unsafe { finish(instance, &args, error) })?;
        for (what, room) in [("min", &min), ("max", &max), ("low and high", &ends)] {
            if !room.is_intact() {
                return Err(self.instance.failed(format!("`finish` wrote beyond the room of `{what}`")));
            }
            if let Some(at) = room.values().iter().position(|v| !v.is_finite()) {
                let found = room.values()[at];
                let reason = format!("`finish` left {found} in `{what}` at {at}, expected a finite number");
                return Err(self.instance.failed(reason));
            }
        }
        let (low, high) = (ends.values()[0], ends.values()[1]);
        Ok(InputRange { min: min.values().to_vec(), max: max.values().to_vec(), low, high })
    }
}
