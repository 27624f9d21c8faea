//! A WASM module as a bit policy.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use taq_policy::{INFO_FORMAT, PolicyInfo, PolicyPlan, PolicyRequest};

use super::assemble::assembled;
use super::cache;
use super::call::{Answer, Guest, Reply, call};
use super::compile::compile;
use super::gate::ModuleFacts;
use super::limits::{FUEL, SHORT_FUEL};
use super::text::{document, shown};
use crate::{BitPolicy, Error, Result};

/// Characters of a policy's name, and of its version.
const NAME_CHARACTERS: usize = 64;

/// A compiled policy with its settings.
pub struct WasmPolicy {
    path: PathBuf,
    hash: String,
    guest: Guest,
    facts: ModuleFacts,
    info: PolicyInfo,
    settings: Map<String, Value>,
}

/// A plan, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRun {
    /// The plan; not checked against the request yet.
    pub plan: PolicyPlan,
    /// The plan's bytes, as the module wrote them.
    pub response: Vec<u8>,
    /// Fuel used, about one unit an instruction. The same module and the same request use the same fuel.
    pub fuel: u64,
    /// Bytes of the module's memory at the end.
    pub memory: usize,
}

impl WasmPolicy {
    /// Reads, checks and compiles a module (or assembles one from a file `NAME.wat`), asks it to describe itself, and tries the settings on it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Wasm`] says what is wrong with the module;
    /// [`Error::Settings`] if it refuses the settings.
    pub fn load(path: &Path, settings: &Value) -> Result<Self> {
        Self::load_with(path, settings, cache::folder().as_deref())
    }

    /// [`Self::load`] with a folder for compiled modules, or none.
    pub(super) fn load_with(path: &Path, settings: &Value, cache: Option<&Path>) -> Result<Self> {
        let settings = match settings {
            Value::Object(settings) => settings.clone(),
            Value::Null => Map::new(),
            other => {
                let owner = format!("policy `{}`", path.display());
                return Err(Error::settings(owner, format!("expected a table of settings, found {other}")));
            }
        };
        let policy = Self { settings, ..Self::open_with(path, cache)? };
        policy.try_settings()?;
        Ok(policy)
    }

    /// As [`Self::load`], without settings: only `describe` runs.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, cache::folder().as_deref())
    }

    pub(super) fn open_with(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let failed = |reason| Error::Wasm { path: path.to_owned(), reason };
        let module = assembled(&bytes, path).map_err(failed)?;
        let (guest, facts) = compile(&module, cache).map_err(failed)?;
        let info = describe(&guest, path).map_err(failed)?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        Ok(Self { path: path.to_owned(), hash, guest, facts, info, settings: Map::new() })
    }

    /// What the module says of itself.
    pub fn info(&self) -> &PolicyInfo {
        &self.info
    }

    /// What its sections say of it.
    pub fn facts(&self) -> &ModuleFacts {
        &self.facts
    }

    /// BLAKE3 of the module's file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Runs the module on a request.
    ///
    /// # Errors
    /// [`Error::Wasm`] if the module breaks a rule or a limit, or says that it has no plan.
    pub fn run(&self, request: &PolicyRequest) -> Result<PolicyRun> {
        self.answer(request, FUEL).map_err(|failure| match failure {
            Failure::Module(reason) => self.failed(reason),
            Failure::Refusal(reason) => self.failed(format!("it has no plan: {reason}")),
        })
    }

    fn failed(&self, reason: String) -> Error {
        Error::Wasm { path: self.path.clone(), reason }
    }

    fn answer(&self, request: &PolicyRequest, fuel: u64) -> Result<PolicyRun, Failure> {
        let request = PolicyRequest { settings: self.settings.clone(), ..request.clone() };
        let request = serde_json::to_vec(&request).map_err(|e| Failure::Module(e.to_string()))?;
        let Answer { reply, fuel, memory } =
            call(&self.guest, &self.info.name, Some(request.into()), fuel).map_err(Failure::Module)?;
        match reply {
            Reply::Document(response) => {
                let plan = document(&response, "plan").map_err(Failure::Module)?;
                Ok(PolicyRun { plan, response, fuel, memory })
            }
            Reply::Refusal(reason) => Err(Failure::Refusal(reason)),
        }
    }

    /// Shows the settings to the module with an empty request, so that a mistake in them comes to light now. What
    /// else it thinks of an empty request does not matter.
    fn try_settings(&self) -> Result<()> {
        let request = PolicyRequest::new("settings", Vec::new(), Vec::new());
        match self.answer(&request, SHORT_FUEL) {
            Err(Failure::Refusal(reason)) if reason.starts_with("settings") => {
                Err(Error::settings(format!("policy `{}`", self.path.display()), reason))
            }
            _ => Ok(()),
        }
    }
}

impl BitPolicy for WasmPolicy {
    fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        let run = self.run(request)?;
        tracing::debug!(fuel = run.fuel, memory = run.memory, "policy {}", self.info.name);
        Ok(run.plan)
    }

    fn per_channel(&self) -> bool {
        self.info.per_channel
    }
}

enum Failure {
    /// The module's fault.
    Module(String),
    /// The module's answer.
    Refusal(String),
}

fn describe(guest: &Guest, path: &Path) -> Result<PolicyInfo, String> {
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let info: PolicyInfo = match call(guest, &name, None, SHORT_FUEL)?.reply {
        Reply::Document(response) => document(&response, "description")?,
        Reply::Refusal(reason) => return Err(format!("it does not describe itself: {reason}")),
    };
    if info.format != INFO_FORMAT {
        let found = shown(info.format.as_bytes());
        return Err(format!("the format of its description is `{found}`; expected `{INFO_FORMAT}`"));
    }
    for (field, text) in [("name", &info.name), ("version", &info.version)] {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if text.is_empty() || text.len() > NAME_CHARACTERS || !text.chars().all(plain) {
            return Err(format!(
                "the {field} in its description is `{}`; expected 1 to {NAME_CHARACTERS} letters, digits and -_.+",
                shown(text.as_bytes())
            ));
        }
    }
    Ok(PolicyInfo { summary: shown(info.summary.as_bytes()), ..info })
}
