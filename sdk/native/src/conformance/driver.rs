//! Calls a plugin through the tables of the ABI, as the host does, with a host of its own.
#![allow(unsafe_code, reason = "calls through tables of the C ABI")]

use std::ffi::c_void;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use taq_policy::{PolicyPlan, PolicyRequest};

use super::observer::Observes;
use super::policy::Plans;
use super::problem::{Gradients, Problem};
use super::rounder::Rounds;
use crate::abi::{
    self, AssignArgs, Buf, Create, Destroy, HostApi, ObserveArgs, ObserverTable, PolicyTable, RoundBlockArgs,
    RoundLayerArgs, RounderTable, Str,
};
use crate::host::{BlockCall, BlockData, RangeRoom, Room, Words};
use crate::view::{self, Shape};
use crate::{
    Batch, BitPolicy, BlockRounder, Error, InputRange, LayerGradients, LayerRounder, LayerSpec, LayerValues,
    Observer, Result, RoundedLayer, export,
};

/// What a plugin under test is told, and what it told.
#[derive(Debug, Default)]
pub struct Host {
    /// Whether the user asked to stop.
    cancelled: AtomicBool,
    /// Whether the functions of a block fail.
    failing: AtomicBool,
    asked: AtomicU64,
    called: AtomicU64,
    progress: Mutex<Vec<(u64, u64)>>,
}

impl Host {
    /// A host whose user asked to stop before the call.
    pub fn cancelling() -> Self {
        Self { cancelled: AtomicBool::new(true), ..Self::default() }
    }

    /// Whether the user asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// How often the plugin asked whether to stop.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// How often the plugin called a function for blocks.
    pub fn called(&self) -> u64 {
        self.called.load(Ordering::Relaxed)
    }

    /// Counts such a call, and says whether it fails.
    ///
    /// # Errors
    /// If they are to fail.
    pub fn call(&self) -> Result<()> {
        self.called.fetch_add(1, Ordering::Relaxed);
        if self.failing.load(Ordering::Relaxed) { Err("the host fails on purpose".into()) } else { Ok(()) }
    }

    /// Notes a report of progress.
    pub fn report(&self, done: u64, total: u64) {
        if let Ok(mut all) = self.progress.lock() {
            all.push((done, total));
        }
    }

    /// What it reported: units done, of how many.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        self.progress.lock().map(|p| p.clone()).unwrap_or_default()
    }

    /// A host whose functions for blocks fail.
    pub fn failing() -> Self {
        Self { failing: AtomicBool::new(true), ..Self::default() }
    }

    fn api(&self) -> HostApi {
        unsafe extern "C" fn log(_: *mut c_void, _: u32, _: Str, _: Str) {}
        unsafe extern "C" fn progress(ctx: *mut c_void, done: u64, total: u64) {
            // SAFETY: `ctx` is the host below, which is alive during the call.
            unsafe { &*ctx.cast::<Host>() }.report(done, total);
        }
        unsafe extern "C" fn cancelled(ctx: *mut c_void) -> u32 {
            // SAFETY: as above.
            let host = unsafe { &*ctx.cast::<Host>() };
            host.asked.fetch_add(1, Ordering::Relaxed);
            host.cancelled.load(Ordering::Relaxed).into()
        }
        HostApi {
            size: size_of::<HostApi>() as u32,
            abi_minor: abi::ABI_MINOR.into(),
            ctx: ptr::from_ref(self).cast_mut().cast(),
            log,
            progress,
            cancelled,
        }
    }
}

/// One instance.
struct Instance {
    pointer: *mut c_void,
    destroy: Option<Destroy>,
    broken: bool,
}

// SAFETY: the ABI allows an instance on any thread, one at a time.
unsafe impl Send for Instance {}

impl Instance {
    fn create(create: Option<Create>, destroy: Option<Destroy>, settings: &str) -> Result<Self> {
        let create = create.ok_or("`create` is null")?;
        let (mut pointer, mut error) = (ptr::null_mut(), Buf::empty());
        // SAFETY: as the ABI says; everything outlives the call.
        let status = unsafe { create(Str::new(settings), &mut pointer, &mut error) };
        answer(status, error)?;
        Ok(Self { pointer, destroy, broken: false })
    }

    fn call(&mut self, call: impl FnOnce(*mut c_void, *mut Buf) -> i32) -> Result<()> {
        let mut error = Buf::empty();
        let status = call(self.pointer, &mut error);
        self.broken |= status == abi::PANICKED;
        answer(status, error)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let (Some(destroy), false) = (self.destroy, self.broken) {
            // SAFETY: made by `create` of the same table, and not used again.
            unsafe { destroy(self.pointer) }
        }
    }
}

fn answer(status: i32, error: Buf) -> Result<()> {
    // SAFETY: the plugin filled it in, or left it empty.
    let text = unsafe { view::taken(error, view::MESSAGE_BYTES) };
    match status {
        abi::OK => Ok(()),
        1..=5 => Err(Error::of_status(status, view::message(&text))),
        other => Err(Error::Failed(format!("it returned {other}, expected 0 to 5"))),
    }
}

/// A rounder behind its table.
pub struct RounderUnderTest {
    table: RounderTable,
    settings: String,
}

impl RounderUnderTest {
    /// A rounder of layers, with settings as JSON.
    pub fn of_layers<T: LayerRounder>(settings: &str) -> Self {
        Self::of_table(*export::layer_rounder_table::<T>(), settings)
    }

    /// A rounder of blocks, with settings as JSON.
    pub fn of_blocks<T: BlockRounder>(settings: &str) -> Self {
        Self::of_table(*export::block_rounder_table::<T>(), settings)
    }

    /// A rounder with this table, whose functions may be called.
    pub fn of_table(table: RounderTable, settings: &str) -> Self {
        Self { table, settings: settings.to_owned() }
    }
}

impl Rounds for RounderUnderTest {
    fn create(&self, settings: Option<&str>) -> Result<()> {
        let settings = settings.unwrap_or(&self.settings);
        Instance::create(self.table.create, self.table.destroy, settings).map(drop)
    }

    fn round(&self, problem: &Problem, seed: u64, host: &Host) -> Result<Vec<RoundedLayer>> {
        let mut instance = Instance::create(self.table.create, self.table.destroy, &self.settings)?;
        self.round_with(&mut instance, problem, seed, host)
    }

    fn round_elsewhere(&self, problem: &Problem, seed: u64) -> Option<Result<Vec<RoundedLayer>>> {
        let made = Instance::create(self.table.create, self.table.destroy, &self.settings);
        let mut instance = match made {
            Ok(instance) => instance,
            Err(e) => return Some(Err(e)),
        };
        let there = thread::scope(|scope| {
            let work = move || self.round_with(&mut instance, problem, seed, &Host::default());
            scope.spawn(work).join()
        });
        Some(there.unwrap_or_else(|_| Err("the thread panicked".into())))
    }

    fn by_block(&self) -> bool {
        self.table.round_block.is_some()
    }
}

impl RounderUnderTest {
    fn round_with(
        &self,
        instance: &mut Instance,
        problem: &Problem,
        seed: u64,
        host: &Host,
    ) -> Result<Vec<RoundedLayer>> {
        let api = host.api();
        let mut rooms: Vec<Room> = problem.layers.iter().map(|l| Room::new(l.clone())).collect();
        let layers: Vec<abi::Layer> = rooms.iter_mut().map(Room::layer).collect();
        if let Some(round) = self.table.round_layer {
            for (at, layer) in layers.iter().enumerate() {
                let (inputs, targets, steps) = problem.rows_of(at);
                let data = &problem.layers[at];
                let rows = Shape::vector(steps.len());
                let input_shape = Shape::matrix(steps.len(), data.spec.in_features);
                let target_shape = Shape::matrix(steps.len(), data.spec.out_features);
                let args = RoundLayerArgs {
                    size: size_of::<RoundLayerArgs>() as u32,
                    reserved: 0,
                    seed: seed.wrapping_add(at as u64),
                    host: &api,
                    layer,
                    inputs: input_shape.view(&inputs),
                    targets: target_shape.view(&targets),
                    steps: rows.view(&steps),
                };
                // SAFETY: as the ABI says; everything outlives the call.
                instance.call(|pointer, error| unsafe { round(pointer, &args, error) })?;
            }
        } else if let Some(round) = self.table.round_block {
            let pointers: Vec<*const abi::Layer> = layers.iter().map(ptr::from_ref).collect();
            let steps: Vec<u32> = (0..problem.rows).map(|r| problem.step(r) as u32).collect();
            let block = Block { problem, host };
            let questions = BlockCall::new(&block, problem.layers.iter(), steps);
            let reconstruction = questions.table();
            let args = RoundBlockArgs {
                size: size_of::<RoundBlockArgs>() as u32,
                reserved: 0,
                seed,
                host: &api,
                block: Str::new("block"),
                layers: pointers.as_ptr(),
                n_layers: pointers.len(),
                reconstruction: &reconstruction,
            };
            // SAFETY: as the ABI says; everything outlives the call.
            instance.call(|pointer, error| unsafe { round(pointer, &args, error) })?;
        } else {
            return Err("it has neither `round_layer` nor `round_block`".into());
        }
        rooms.iter().map(|room| room.rounded().map_err(Error::Failed)).collect()
    }
}

/// The problem as what a plugin asks about.
struct Block<'a> {
    problem: &'a Problem,
    host: &'a Host,
}

fn numbers(rows: &[u64]) -> Vec<usize> {
    rows.iter().map(|row| *row as usize).collect()
}

impl BlockData for Block<'_> {
    type Error = Error;
    type Gradients = Vec<Gradients>;

    fn status(error: &Error) -> i32 {
        error.status()
    }

    fn check(&self) -> Result<()> {
        self.host.call()
    }

    fn inputs(&self, rows: &[u64], visit: &mut dyn FnMut(usize, &[f32]) -> bool) -> Result<()> {
        let tokens = self.problem.tokens(&numbers(rows));
        let _ = (0..self.problem.layers.len()).all(|layer| visit(layer, &tokens));
        Ok(())
    }

    fn loss_and_gradients(
        &self,
        layers: &[LayerValues<'_>],
        batch: Batch<'_>,
        _: bool,
    ) -> Result<(f32, Vec<Gradients>)> {
        let mut found = self.problem.gradients();
        let loss = self.problem.loss(layers, &numbers(batch.rows), Some(&mut found));
        Ok((loss, found))
    }

    fn of_layer(gradients: &Vec<Gradients>, layer: usize) -> Result<LayerGradients<'_>> {
        let found = gradients.get(layer).ok_or("a layer without gradients")?;
        Ok(LayerGradients { weight: &found.weight, input_scale: &found.input_scale })
    }

    fn held_out_loss(&self, layers: &[LayerValues<'_>]) -> Result<f32> {
        Ok(self.problem.held_out(layers))
    }
}

/// An observer behind its table.
pub struct ObserverUnderTest {
    table: ObserverTable,
    settings: String,
}

impl ObserverUnderTest {
    /// An observer, with settings as JSON.
    pub fn of<T: Observer>(settings: &str) -> Self {
        Self::of_table(*export::observer_table::<T>(), settings)
    }

    /// An observer with this table, whose functions may be called.
    pub fn of_table(table: ObserverTable, settings: &str) -> Self {
        Self { table, settings: settings.to_owned() }
    }
}

impl Observes for ObserverUnderTest {
    fn create(&self, settings: Option<&str>) -> Result<()> {
        let settings = settings.unwrap_or(&self.settings);
        Instance::create(self.table.create, self.table.destroy, settings).map(drop)
    }

    fn range(&self, layer: &LayerSpec, batches: &[&[f32]]) -> Result<InputRange> {
        let mut instance = Instance::create(self.table.create, self.table.destroy, &self.settings)?;
        let (observe, finish) =
            (self.table.observe.ok_or("`observe` is null")?, self.table.finish.ok_or("`finish` is null")?);
        let channels = layer.in_features;
        let (host, info, shape) = (Host::default(), Words::of(layer).info(), Shape::vector(channels));
        let api = host.api();
        for batch in batches {
            let (mut min, mut max) = (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
            for (i, v) in batch.iter().enumerate() {
                min[i % channels] = min[i % channels].min(*v);
                max[i % channels] = max[i % channels].max(*v);
            }
            let tokens = Shape::matrix(batch.len() / channels, channels);
            let args = ObserveArgs {
                size: size_of::<ObserveArgs>() as u32,
                sigma: 0.5,
                step: 3,
                host: &api,
                layer: &info,
                values: tokens.view(batch),
                min: shape.view(&min),
                max: shape.view(&max),
            };
            // SAFETY: as the ABI says; everything outlives the call.
            instance.call(|pointer, error| unsafe { observe(pointer, &args, error) })?;
        }
        let mut room = RangeRoom::new(channels);
        let args = room.args();
        // SAFETY: as the ABI says; everything outlives the call.
        instance.call(|pointer, error| unsafe { finish(pointer, &args, error) })?;
        room.range().map_err(Error::Failed)
    }
}

/// A bit policy behind its table.
pub struct PolicyUnderTest {
    table: PolicyTable,
    settings: String,
}

impl PolicyUnderTest {
    /// A bit policy, with settings as JSON.
    pub fn of<T: BitPolicy>(settings: &str) -> Self {
        Self::of_table(*export::policy_table::<T>(), settings)
    }

    /// A bit policy with this table, whose functions may be called.
    pub fn of_table(table: PolicyTable, settings: &str) -> Self {
        Self { table, settings: settings.to_owned() }
    }
}

impl Plans for PolicyUnderTest {
    fn create(&self, settings: Option<&str>) -> Result<()> {
        let settings = settings.unwrap_or(&self.settings);
        Instance::create(self.table.create, self.table.destroy, settings).map(drop)
    }

    fn plan(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        let mut instance = Instance::create(self.table.create, self.table.destroy, &self.settings)?;
        let assign = self.table.assign.ok_or("`assign` is null")?;
        let host = Host::default();
        let api = host.api();
        let settings = serde_json::from_str(&self.settings).map_err(|e| Error::invalid(e.to_string()))?;
        let request = PolicyRequest { settings, ..request.clone() };
        let request = serde_json::to_string(&request).map_err(|e| e.to_string())?;
        let args = AssignArgs {
            size: size_of::<AssignArgs>() as u32,
            reserved: 0,
            host: &api,
            request: Str::new(&request),
        };
        let mut plan = Buf::empty();
        // SAFETY: as the ABI says; everything outlives the call.
        let called = instance.call(|pointer, error| unsafe { assign(pointer, &args, &mut plan, error) });
        // SAFETY: the plugin filled it in, or left it empty.
        let plan = unsafe { view::taken(plan, 64 << 20) };
        called?;
        serde_json::from_slice(&plan).map_err(|e| Error::Failed(format!("its plan is not one: {e}")))
    }
}
