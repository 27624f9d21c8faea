//! A library's rounder as taq's: layer by layer, or block by block.

use serde_json::Value;
use taq_plugin::abi::{RoundBlockArgs, RoundLayerArgs, RounderTable, Str};
use taq_plugin::host::{BlockCall, Room};
use taq_plugin::view::Shape;

use super::answer::rounded;
use super::block::NativeBlock;
use super::call::{Call, UNITS};
use super::declared::{NativeItem, Table};
use super::instance::Instance;
use super::layers::{room, rows};
use crate::{BlockJob, Context, Result, RoundedBlock, Rounder};

struct NativeRounder {
    instance: Instance,
    table: RounderTable,
}

impl NativeItem {
    /// Makes a rounder.
    ///
    /// # Errors
    /// [`crate::Error::Settings`] if it refuses the settings, [`crate::Error::Native`] if it fails.
    pub fn rounder(&'static self, settings: &Value) -> Result<Box<dyn Rounder>> {
        let Table::Rounder(table) = self.table else { return Err(self.other_kind("rounder")) };
        let instance = Instance::create(self, table.create, table.destroy, settings)?;
        Ok(Box::new(NativeRounder { instance, table }))
    }
}

impl Rounder for NativeRounder {
    fn round(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        cx.check()?;
        if self.table.round_block.is_some() { self.block(job, cx) } else { self.layers(job, cx) }
    }

    fn iterations(&self) -> u64 {
        UNITS
    }
}

impl NativeRounder {
    fn layers(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        let Some(round) = self.table.round_layer else {
            return Err(self.instance.failed("`round_layer` is null"));
        };
        let all = rows(job, cx)?;
        let (mut layers, count) = (Vec::new(), job.layers.len() as u64);
        for (at, (layer, rows)) in job.layers.iter().zip(&all).enumerate() {
            cx.check()?;
            let mut room = room(layer)?;
            let targets = rows.targets(layer)?;
            let units = UNITS * (at as u64 + 1) / count - UNITS * at as u64 / count;
            let call = Call::new(&self.instance.item.speaker, Some(cx), units);
            let host = call.api();
            let inputs = Shape::matrix(rows.steps.len(), layer.spec.in_features);
            let outputs = Shape::matrix(rows.steps.len(), layer.spec.out_features);
            let steps = Shape::vector(rows.steps.len());
            let layer_args = room.layer();
            let args = RoundLayerArgs {
                size: size_of::<RoundLayerArgs>() as u32,
                reserved: 0,
                // Layers must not share a random stream.
                seed: cx.seed.wrapping_add(at as u64),
                host: &host,
                layer: &layer_args,
                inputs: inputs.view(&rows.inputs),
                targets: outputs.view(&targets),
                steps: steps.view(&rows.steps),
            };
            // SAFETY: as the ABI says; everything outlives the call.
            self.instance
                .call("round_layer", Some(cx), |instance, error| unsafe { round(instance, &args, error) })?;
            layers.push(rounded(&self.instance, layer, &room)?);
            call.done();
        }
        Ok(RoundedBlock { layers, losses: Vec::new() })
    }

    fn block(&self, job: &BlockJob<'_>, cx: &Context) -> Result<RoundedBlock> {
        let Some(round) = self.table.round_block else {
            return Err(self.instance.failed("`round_block` is null"));
        };
        let mut rooms = job.layers.iter().map(room).collect::<Result<Vec<_>>>()?;
        let layers: Vec<_> = rooms.iter_mut().map(Room::layer).collect();
        let pointers: Vec<_> = layers.iter().map(std::ptr::from_ref).collect();
        let block = NativeBlock::new(job, cx);
        let questions = BlockCall::new(&block, rooms.iter().map(Room::data), block.steps());
        let reconstruction = questions.table();
        let call = Call::new(&self.instance.item.speaker, Some(cx), UNITS);
        let host = call.api();
        let args = RoundBlockArgs {
            size: size_of::<RoundBlockArgs>() as u32,
            reserved: 0,
            seed: cx.seed,
            host: &host,
            block: Str::new(job.block.id.as_str()),
            layers: pointers.as_ptr(),
            n_layers: pointers.len(),
            reconstruction: &reconstruction,
        };
        // SAFETY: as the ABI says; everything outlives the call.
        let called = self
            .instance
            .call("round_block", Some(cx), |instance, error| unsafe { round(instance, &args, error) });
        // What failed in the host is told as such, whatever the plugin makes of it.
        match (called, questions.failed()) {
            (Err(_), Some(own)) => return Err(own),
            (called, _) => called?,
        }
        let layers = job.layers.iter().zip(&rooms).map(|(l, room)| rounded(&self.instance, l, room));
        let layers = layers.collect::<Result<_>>()?;
        call.done();
        Ok(RoundedBlock { layers, losses: block.losses() })
    }
}
