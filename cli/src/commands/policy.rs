//! `taq policy`: look into bit policies, run them, compare their plans.

use std::path::Path;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde_json::Value;
use taq_core::artifacts::RunFolder;
use taq_core::pipeline::{check_plan, policy_request};
use taq_core::registry::is_path;
use taq_core::wasm::{WasmPolicy, limits};
use taq_core::{Error, LayerPlan, PolicyPlan, PolicyRequest, Result};

use super::{Host, stages};
use crate::args::{PolicyArgs, PolicyCommand, PolicyRunArgs, SessionArgs};
use crate::error::Failure;
use crate::output::{Table, bytes, print, print_json, terminal_width};
use crate::settings_table::settings_table;

/// Executes the subcommand.
pub(crate) fn policy(host: Host, args: &PolicyArgs) -> Result<(), Failure> {
    match &args.command {
        PolicyCommand::Inspect { module } => inspect(module),
        PolicyCommand::Request { per_channel, session } => print_json(&request(host, session, *per_channel)?),
        PolicyCommand::Run(args) => run(host, args),
        PolicyCommand::Diff { first, second } => diff(first, second),
    }
}

fn inspect(path: &Path) -> Result<(), Failure> {
    let policy = WasmPolicy::load(path, &Value::Null)?;
    let (info, facts) = (policy.info(), policy.facts());
    let mut text =
        format!("policy `{}` {}, from {}\n{}\n\n", info.name, info.version, path.display(), info.summary);
    let memory = format!(
        "{} at the start, at most {}",
        bytes(facts.memory_pages * 65536),
        bytes(limits::MEMORY_BYTES as u64)
    );
    let mut table = Table::new(&["MODULE", ""]);
    table.row(["size", &format!("{}, {} functions", bytes(facts.bytes as u64), facts.functions)]);
    table.row(["blake3", policy.hash()]);
    table.row(["imports", &facts.imports.join(", ")]);
    table.row(["exports", &facts.exports.join(", ")]);
    table.row(["memory", &memory]);
    table.row(["fuel", &format!("at most {} million instructions a call", limits::FUEL / 1_000_000)]);
    table.row(["response", &format!("at most {}", bytes(limits::RESPONSE_BYTES as u64))]);
    table.row([
        "channels",
        if info.per_channel { "asks for every channel's statistics" } else { "not asked for" },
    ]);
    text.push_str(&table.render(terminal_width()));
    text.push('\n');
    match settings_table(&Value::Object(info.settings_schema.clone()), terminal_width()) {
        Some(settings) => text.push_str(&settings),
        None => text.push_str("It describes no settings.\n"),
    }
    print(&text)
}

/// What a policy is told of a run folder.
fn request(host: Host, args: &SessionArgs, per_channel: bool) -> Result<PolicyRequest, Failure> {
    stages::needs_run(args, "policy request", "statistics")?;
    let choice = args.choice(&host.registry)?;
    let session = stages::open(host, &choice, RunFolder::create(&args.run)?, false)?;
    Ok(policy_request(&session, per_channel)?)
}

fn run(host: Host, args: &PolicyRunArgs) -> Result<(), Failure> {
    let settings = args.config.clone().unwrap_or_default();
    let value = Value::Object(settings.clone());
    // A module is loaded once, whatever it is then asked.
    let module =
        if is_path(&args.policy) { Some(WasmPolicy::load(Path::new(&args.policy), &value)?) } else { None };
    let linked = if module.is_some() { None } else { Some(host.registry.policy(&args.policy, &value)?) };
    let per_channel = module.as_ref().is_some_and(|m| m.info().per_channel)
        || linked.as_ref().is_some_and(|p| p.per_channel());
    let request: PolicyRequest = match &args.request {
        Some(path) => read("policy request", path)?,
        None => request(host, &args.session, per_channel)?,
    };
    let start = Instant::now();
    let plan = match (&module, &linked) {
        (Some(module), _) => {
            let run = module.run(&request)?;
            tracing::info!(
                "{:.3} million instructions, {} of memory, {:.1} ms",
                run.fuel as f64 / 1e6,
                bytes(run.memory as u64),
                start.elapsed().as_secs_f64() * 1e3
            );
            run.plan
        }
        (None, Some(linked)) => linked.assign(&request)?,
        (None, None) => unreachable!("a policy is one or the other"),
    };
    check_plan(&args.policy, &request, &plan)?;
    print_json(&plan)
}

fn diff(first: &Path, second: &Path) -> Result<(), Failure> {
    let (a, b): (PolicyPlan, PolicyPlan) = (read("policy plan", first)?, read("policy plan", second)?);
    let ids = |plan: &PolicyPlan| plan.layers.iter().map(|l| l.id.clone()).collect::<Vec<_>>();
    if ids(&a) != ids(&b) {
        let reason =
            format!("its layers are not those of `{}`: the plans are of different models", first.display());
        return Err(Error::malformed("policy plan", second, reason).into());
    }
    let differing: Vec<_> = a.layers.iter().zip(&b.layers).filter(|(a, b)| a != b).collect();
    let mut text = format!("{} of {} layers differ\n\n", differing.len(), a.layers.len());
    let mut table = Table::new(&["LAYER", "WEIGHT", "ACTIVATIONS", "WHAT ELSE DIFFERS"]);
    table.row([
        "average",
        &change(&mean(&a, weight), &mean(&b, weight)),
        &change(&mean(&a, activations), &mean(&b, activations)),
        "",
    ]);
    for (a, b) in differing {
        table.row([
            a.id.as_str(),
            &change(&weight(a).to_string(), &weight(b).to_string()),
            &change(&format!("{:.2}", activations(a)), &format!("{:.2}", activations(b))),
            &others(a, b),
        ]);
    }
    text.push_str(&table.render(terminal_width()));
    print(&text)
}

fn weight(layer: &LayerPlan) -> f64 {
    f64::from(layer.weight_bits)
}

/// Mean over the timesteps.
fn activations(layer: &LayerPlan) -> f64 {
    let sum: f64 = layer.activation_bits.iter().map(|&b| f64::from(b)).sum();
    sum / layer.activation_bits.len().max(1) as f64
}

/// Mean over the layers, each counted once.
fn mean(plan: &PolicyPlan, bits: fn(&LayerPlan) -> f64) -> String {
    format!("{:.2}", plan.layers.iter().map(bits).sum::<f64>() / plan.layers.len().max(1) as f64)
}

fn change(a: &str, b: &str) -> String {
    if a == b { a.to_owned() } else { format!("{a} → {b}") }
}

/// Fields other than bits.
fn others(a: &LayerPlan, b: &LayerPlan) -> String {
    let mut parts = Vec::new();
    if a.scale_source != b.scale_source {
        parts.push(format!("scale {:?} → {:?}", a.scale_source, b.scale_source).to_lowercase());
    }
    if a.shift != b.shift {
        parts.push(if b.shift { "shift added" } else { "shift dropped" }.to_owned());
    }
    if a.smoothquant_alpha != b.smoothquant_alpha {
        parts.push("SmoothQuant".to_owned());
    }
    let steps = a.activation_bits.iter().zip(&b.activation_bits).filter(|(a, b)| a != b).count();
    if steps > 0 {
        parts.push(format!("{steps} of {} timesteps", a.activation_bits.len()));
    }
    if a.reason != b.reason {
        parts.push("reason".to_owned());
    }
    parts.join(", ")
}

fn read<T: DeserializeOwned>(kind: &'static str, path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::malformed(kind, path, e))
}
