//! `taq policy`: look into bit policies, run and test them, compare their plans.

mod bench;
mod cases;
mod diff;
mod inspect;

use std::path::Path;

use serde_json::{Map, Value};
use taq_core::artifacts::{RunFolder, read_json};
use taq_core::pipeline::{check_plan, policy_request};
use taq_core::registry::{Registry, is_path};
use taq_core::wasm::{PolicyRun, WasmPolicy};
use taq_core::{BitPolicy, PolicyPlan, PolicyRequest, Result};

use super::{Host, stages};
use crate::args::{PolicyArgs, PolicyCommand, PolicyRunArgs, SessionArgs};
use crate::error::Failure;
use crate::output::{bytes, print_json};

/// Executes the subcommand.
pub(crate) fn policy(host: Host, args: &PolicyArgs) -> Result<(), Failure> {
    match &args.command {
        PolicyCommand::Inspect { module } => inspect::inspect(module),
        PolicyCommand::Request { per_channel, session } => {
            print_json(&run_folder_request(host, session, *per_channel)?)
        }
        PolicyCommand::Run(args) => run(host, args),
        PolicyCommand::Test { policy, cases, bless } => cases::test(&host.registry, policy, cases, *bless),
        PolicyCommand::Bench { policies, request, config, runs } => {
            bench::bench(&host.registry, policies, request, config.as_ref(), *runs)
        }
        PolicyCommand::Diff { first, second } => diff::diff(first, second),
    }
}

/// A policy with its settings.
enum Policy {
    Module(Box<WasmPolicy>),
    Linked(Box<dyn BitPolicy>),
}

impl Policy {
    fn load(registry: &Registry, name: &str, settings: &Map<String, Value>) -> Result<Self> {
        let settings = Value::Object(settings.clone());
        if is_path(name) {
            return Ok(Self::Module(Box::new(WasmPolicy::load(Path::new(name), &settings)?)));
        }
        Ok(Self::Linked(registry.policy(name, &settings)?))
    }

    fn per_channel(&self) -> bool {
        match self {
            Self::Module(module) => module.per_channel(),
            Self::Linked(linked) => linked.per_channel(),
        }
    }

    /// The plan, checked; of a module also what it took.
    fn assign(&self, name: &str, request: &PolicyRequest) -> Result<(PolicyPlan, Option<PolicyRun>)> {
        let (plan, run) = match self {
            Self::Module(module) => {
                let run = module.run(request)?;
                (run.plan.clone(), Some(run))
            }
            Self::Linked(linked) => (linked.assign(request)?, None),
        };
        check_plan(name, request, &plan)?;
        Ok((plan, run))
    }
}

fn run(host: Host, args: &PolicyRunArgs) -> Result<(), Failure> {
    let policy = Policy::load(&host.registry, &args.policy, &args.config.clone().unwrap_or_default())?;
    let request: PolicyRequest = match &args.request {
        Some(path) => read_json(path, "policy request")?,
        None => run_folder_request(host, &args.session, policy.per_channel())?,
    };
    let (plan, run) = policy.assign(&args.policy, &request)?;
    if let Some(run) = run {
        tracing::info!(
            "{:.3} million instructions, {} of memory",
            run.fuel as f64 / 1e6,
            bytes(run.memory as u64)
        );
    }
    print_json(&plan)
}

/// What a policy is told of a run folder.
fn run_folder_request(host: Host, args: &SessionArgs, per_channel: bool) -> Result<PolicyRequest, Failure> {
    stages::needs_run(args, "policy request", "statistics")?;
    let choice = args.choice(&host.registry)?;
    let session = stages::open(host, &choice, RunFolder::create(&args.run)?, false)?;
    Ok(policy_request(&session, per_channel)?)
}
