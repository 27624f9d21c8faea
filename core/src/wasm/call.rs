//! One call of one function of a guest, in a store of its own.

use std::sync::Arc;

use wasmtime::component::Component;
use wasmtime::{AsContextMut, Engine, Module, Store, Trap};

use super::explain::explain;
use super::limiter::Limiter;
use super::limits::{CALL_FUEL, HANDLES, LOG_LINES, RESPONSE_BYTES};
use super::text::shown;
use super::{component, module};

/// A compiled policy.
#[derive(Clone)]
pub(super) enum Guest {
    Module(Module),
    Component(Component),
}

impl Guest {
    fn engine(&self) -> &Engine {
        match self {
            Self::Module(module) => module.engine(),
            Self::Component(component) => component.engine(),
        }
    }
}

/// What a guest said.
#[derive(Debug)]
pub(super) enum Reply {
    /// A description or a plan.
    Document(Vec<u8>),
    /// Why there is no plan.
    Refusal(String),
}

/// What a call left behind.
#[derive(Debug)]
pub(super) struct Answer {
    pub reply: Reply,
    /// Fuel that was used up.
    pub fuel: u64,
    /// Bytes of linear memory at the end.
    pub memory: usize,
}

/// What the host's functions work on.
pub(super) struct State {
    /// For the log.
    name: Arc<str>,
    /// Nothing for `describe`.
    pub request: Option<Arc<[u8]>>,
    /// What a module has written.
    pub response: Option<Vec<u8>>,
    lines: usize,
    limiter: Limiter,
}

impl State {
    /// Whether one more line is kept.
    pub(super) fn takes_line(&mut self) -> bool {
        self.lines += 1;
        self.lines <= LOG_LINES
    }

    /// Writes a line to the log.
    pub(super) fn log(&self, level: u32, line: &[u8]) {
        let line = shown(line);
        match level {
            1 => tracing::error!("policy {}: {line}", self.name),
            2 => tracing::warn!("policy {}: {line}", self.name),
            3 => tracing::info!("policy {}: {line}", self.name),
            _ => tracing::debug!("policy {}: {line}", self.name),
        }
    }
}

/// Calls `describe` (without a request) or `assign`. The error is a sentence for the user.
pub(super) fn call(
    guest: &Guest,
    name: &str,
    request: Option<Arc<[u8]>>,
    fuel: u64,
) -> Result<Answer, String> {
    let state = State { name: name.into(), request, response: None, lines: 0, limiter: Limiter::default() };
    let mut store = Store::new(guest.engine(), state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(RESPONSE_BYTES);
    store.set_max_component_handles(HANDLES);
    // Before instantiation: a start function runs there, and may be endless.
    let reply = store.set_fuel(fuel).and_then(|()| match guest {
        Guest::Module(module) => module::reply(module, &mut store),
        Guest::Component(component) => component::reply(component, &mut store),
    });
    let reply = reply.map_err(|error| explain(&error, fuel))?;
    let used = fuel - store.get_fuel().unwrap_or(0);
    Ok(Answer { reply, fuel: used, memory: store.data().limiter.memory })
}

/// Takes fuel for what the host does on behalf of a guest: calls of its functions would be free otherwise, and a loop
/// of them would take for ever.
pub(super) fn charge(mut store: impl AsContextMut<Data = State>, bytes: usize) -> wasmtime::Result<()> {
    let mut store = store.as_context_mut();
    let left = store.get_fuel()?.checked_sub(CALL_FUEL + bytes as u64).ok_or(Trap::OutOfFuel)?;
    store.set_fuel(left)
}
